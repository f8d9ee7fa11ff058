"""What a budget buys, as described in a layout's `frontiers`::

    - title: after Stage 3
      run: stage3
      rows: init              # the label whose values compete
      cost: time              # a column or metric, less is better
      quality: total          # a column, better as it says

Every cell is a point of cost and quality. For each budget at which a cell becomes affordable the
table has the best affordable cell of each competitor, the cells' difference with its interval
(`intervals.py`), and so the budgets between which the order changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.report.claims import HOLDS, verdict_of
from sweeps.report.frame import Place
from sweeps.report.intervals import Estimate, FrameNumbers, shown
from sweeps.report.layout import label_text
from sweeps.report.text_tables import TextTable


@dataclass(frozen=True)
class Point:
    """A cell that was run: its place, its competitor, mean cost and mean quality."""

    place: Place
    row: str
    cost: Estimate
    quality: Estimate


def frontier_tables(numbers: FrameNumbers) -> list[TextTable]:
    """A table for every entry of the layout's `frontiers`; none where nothing was run."""
    found = [_table(said, numbers) for said in numbers.layout.frontiers]
    return [table for table in found if table.rows]


def _table(said: Mapping[str, Any], numbers: FrameNumbers) -> TextTable:
    layout, label = numbers.layout, said["rows"]
    points = _points(said, numbers)
    rows = list(dict.fromkeys(label_text(v) for v in numbers.frame.label_values(label)))
    names = [layout.name(label, row) for row in rows]
    cost, quality = layout.columns[said["cost"]], layout.columns[said["quality"]]
    body, seen = [], None
    for budget in sorted({point.cost.value for point in points}):
        paid = [point for point in points if point.cost.value <= budget]
        best = [_best(paid, row, quality.sign) for row in rows]
        if best != seen:
            cells = [_cell(p, label, numbers) if p else "-" for p in best]
            body.append([cost.text(budget), *cells, _ahead(best, names, said, numbers)])
        seen = best
    head = [f"{cost.heading} up to [{cost.unit}]", *names, "ahead"]
    note = f"The best cell within the budget by {quality.heading}, and how far it is ahead."
    return TextTable(said["title"], head, body, note)


def _points(said: Mapping[str, Any], numbers: FrameNumbers) -> list[Point]:
    found = []
    for place in numbers.frame.places.values():
        if place.name != said["run"] or said["rows"] not in place.labels:
            continue
        cost, quality = (
            numbers.estimate([(1.0, f"{place.address}/{said[axis]}")])
            for axis in ("cost", "quality")
        )
        if cost and quality:
            found.append(Point(place, label_text(place.labels[said["rows"]]), cost, quality))
    return found


def _best(points: Sequence[Point], row: str, sign: int) -> Point | None:
    mine = [point for point in points if point.row == row]
    return max(mine, key=lambda point: sign * point.quality.value, default=None)


def _cell(point: Point, label: str, numbers: FrameNumbers) -> str:
    """The cell's other labels, and its quality."""
    layout = numbers.layout
    others = [layout.name(k, v) for k, v in point.place.labels.items() if k != label]
    return f"{shown(point.quality)} ({', '.join(others)})"


def _ahead(
    best: Sequence[Point | None],
    names: Sequence[str],
    said: Mapping[str, Any],
    numbers: FrameNumbers,
) -> str:
    """Which of two is better by how much; "only" where the budget buys but one."""
    known = [(name, point) for name, point in zip(names, best, strict=True) if point]
    if len(known) == 1:
        return f"only {known[0][0]}"
    sign = numbers.layout.columns[said["quality"]].sign
    (first, a), (second, b), *_ = sorted(known, key=lambda one: -sign * one[1].quality.value)
    addresses = (f"{point.place.address}/{said['quality']}" for point in (a, b))
    margin = numbers.estimate(list(zip((1.0 * sign, -1.0 * sign), addresses, strict=True)))
    sure = margin is not None and verdict_of(margin, strict=True) == HOLDS
    return f"{first} by {shown(margin)}" + ("" if sure else f"; not distinguishable from {second}")
