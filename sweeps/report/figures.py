"""The automatic figures of a sweep's page, where there is data for them: each ranked column
against a numeric parameter, drift by frame index, two runs of a cell compared, and cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np

from sweeps.report.canvas import INK, canvas, dumbbell, legend, row_ticks, svg
from sweeps.report.intervals import FrameNumbers
from sweeps.report.layout import Column, human_bytes
from sweeps.report.table import Block, Row, Table


@dataclass(frozen=True)
class Figure:
    """A section of the page: an SVG under a title, with what to know to read it."""

    id: str
    title: str
    svg: str
    caption: str


def automatic(numbers: FrameNumbers, table: Table | None) -> list[Figure]:
    """The figures for which there is data."""
    if table is None or not table.rows:
        return []
    draw: Sequence[Callable[[FrameNumbers, Table], Figure]] = (parameter, drift, compare, cost)
    return [figure for each in draw if (figure := each(numbers, table)).svg]


def parameter_of(table: Table) -> str:
    """The one label that tells the rows apart, if its values are numbers; else ""."""
    differ = [
        label
        for label in table.labels
        if len({str(row.labels.get(label)) for row in table.rows}) > 1
    ]
    if len(table.blocks) > 1 or len(differ) != 1:
        return ""
    values = [row.labels.get(differ[0]) for row in table.rows]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return differ[0] if numeric else ""


def parameter(numbers: FrameNumbers, table: Table) -> Figure:
    """Each ranked column against the parameter that is varied: a point a row, with its interval."""
    label = parameter_of(table)
    rows = sorted(table.rows, key=lambda row: row.labels[label]) if label else []
    shown = [c for c in table.columns if c.ranked and any(r.entries[c.id].margin for r in rows)]
    caption = "Points: the table's values. Bars: 95% intervals."
    title = f"What {numbers.layout.head(label)} changes"
    if not shown:
        return Figure("parameter", title, "", caption)
    across = min(4, len(shown))
    down = -(-len(shown) // across)
    figure, axes = canvas(down, across, 2.9 * across, 2.5 * down)
    for axis, column in zip(axes.flat, shown, strict=False):
        known = [(r.labels[label], m) for r in rows if (m := r.entries[column.id].margin)]
        axis.plot([x for x, _ in known], [m.value for _, m in known], color=INK, marker="o", ms=4)
        for x, margin in known:
            if margin.low is not None:
                axis.plot([x, x], [margin.low, margin.high], color=INK, lw=4, alpha=0.25)
        axis.set_title(fill(column.title, 32))
        axis.set_xlabel(numbers.layout.head(label))
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    return Figure("parameter", title, svg(figure, "parameter"), caption)


def drift(numbers: FrameNumbers, table: Table) -> Figure:
    """One panel per curve and block: a line per row over the frame index, band = seeds."""
    found = {
        curve.id: {row.address: numbers.frame.curve(f"{row.address}/{curve.id}")
                   for row in table.rows}
        for curve in numbers.layout.curves.values()
    }  # fmt: skip
    found = {id: lines for id, lines in found.items() if any(v is not None for v in lines.values())}
    title = "Drift: quality by frame index"
    caption = "Mean over seeds; band: from the lowest to the highest seed."
    if any(row.id == numbers.layout.real for row in table.references):
        caption += (
            " Dotted: held-out real clips by the same code. A curve that moves away from the"
            " dotted line drifts."
        )
    if not found:
        return Figure("drift", title, "", caption)
    across = len(table.blocks)
    size = 3.7 * across + 0.6, 2.5 * len(found) + 0.5
    figure, axes = canvas(len(found), across, *size, sharey="row")
    for panels, (id, lines) in zip(axes, found.items(), strict=True):
        for axis, block in zip(panels, table.blocks, strict=True):
            for row in block.rows:
                _drift_line(axis, row, lines[row.address])
            _real_line(axis, numbers, table, id)
            axis.xaxis.get_major_locator().set_params(integer=True)
        panels[0].set_ylabel(fill(numbers.layout.curves[id].title, 26))
    _titles(axes, table)
    for axis in axes[-1]:
        axis.set_xlabel("frame index")
    legend(figure, axes)
    return Figure("drift", title, svg(figure, "drift"), caption)


def _drift_line(axis: Any, row: Row, curves: np.ndarray | None) -> None:
    if curves is None:
        return
    index = np.arange(curves.shape[1])
    axis.plot(index, curves.mean(0), color=row.colour, marker="o", ms=3, lw=1.6, label=row.name)
    if len(curves) > 1:
        low, high = curves.min(0), curves.max(0)
        axis.fill_between(index, low, high, color=row.colour, alpha=0.18, lw=0)


def _real_line(axis: Any, numbers: FrameNumbers, table: Table, curve: str) -> None:
    for row in table.references:
        beside = row.id == numbers.layout.real
        real = numbers.frame.curve(f"{row.address}/{curve}") if beside else None
        if real is not None:
            axis.plot(real[0], color=INK, ls=":", lw=1.2, label=row.name)


def _titles(axes: np.ndarray, table: Table) -> None:
    for axis, block in zip(axes[0], table.blocks, strict=True):
        axis.set_title(block.title)


def compare(numbers: FrameNumbers, table: Table) -> Figure:
    """Two runs of each cell (hollow, filled): one panel per column and block.

    Panels side by side share their rows, so a row stands at one height in every block that has it.
    """
    said = numbers.layout.compare
    title, caption = said.get("title", ""), said.get("caption", "")
    columns = [numbers.layout.columns[id] for id in said.get("columns", ())
               if id in numbers.layout.columns]  # fmt: skip
    shown = [c for c in columns if any(row.entries[c.id].margin for row in table.rows)]
    if not shown:
        return Figure("compare", title, "", caption)
    names = {row.id: row.name for row in table.rows}
    heights = {id: place for place, id in enumerate(names)}
    size = 3.6 * len(table.blocks) + 0.9, max(2.2, 0.2 * len(names) + 0.7) * len(shown) + 0.2
    figure, axes = canvas(len(shown), len(table.blocks), *size, sharex="row", sharey="row")
    for panels, column in zip(axes, shown, strict=True):
        for axis, block in zip(panels, table.blocks, strict=True):
            for row in block.rows:
                cell = row.address.rpartition("/")[0]
                addresses = [f"{cell}/{run}/{column.id}" for run in said["runs"]]
                ends = [numbers.estimate([(1.0, address)]) for address in addresses]
                dumbbell(axis, heights[row.id], row.colour, ends)
            axis.set_xlabel(_directed(column))
        row_ticks(panels[0], list(names.values()))
    _titles(axes, table)
    return Figure("compare", title, svg(figure, "compare"), caption)


def _directed(column: Column) -> str:
    unit = f" [{column.unit}]" if column.unit else ""
    return f"{column.heading}{unit}, {column.better} is better"


def cost(numbers: FrameNumbers, table: Table) -> Figure:
    """Stage-2 device-seconds per row, curation of pairs and training stacked; storage as text."""
    costs = _costs(numbers, table) if "time" in numbers.layout.columns else []
    title, caption = "What Stage 2 costs", (
        "Measured from the run records, mean over seeds. A row without a Stage 2 is left out, one "
        "whose Stage 2 differs between blocks names them. Not counted: the data set itself and "
        "checkpoints."
    )  # fmt: skip
    if not costs:
        return Figure("cost", title, "", caption)
    figure, ((axis,),) = canvas(1, 1, 8.2, 0.42 * len(costs) + 1.1)
    for place, (_, colour, (pairs, total, stored)) in enumerate(costs):
        axis.barh(place, pairs, 0.6, color=colour, alpha=0.4)
        axis.barh(place, total - pairs, 0.6, left=pairs, color=colour)
        label = f"{total:,.0f} s, {human_bytes(stored)} stored"
        axis.annotate(label, (total, place), (5, 0), textcoords="offset points", va="center")
    row_ticks(axis, [name for name, _, _ in costs])
    axis.set_xlim(0, 1.5 * max(total for _, _, (_, total, _) in costs))
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("Stage-2 time [device-seconds]; pale: curation of pairs, solid: training")
    return Figure("cost", title, svg(figure, "cost"), caption)


def _costs(numbers: FrameNumbers, table: Table) -> list[tuple[str, str, tuple[float, ...]]]:
    """Name, colour and what Stage 2 cost [s of pairs, s in all, bytes stored] of every row; blocks
    that share a Stage 2 share the entry, those that do not are named.
    """
    costs: dict[str, dict[tuple[float, ...], tuple[Row, Block]]] = {}
    for block in table.blocks:
        for row in block.rows:
            asked = [f"{row.address}/cost.{k}" for k in ("pairs_seconds", "seconds", "storage")]
            found = [numbers.estimate([(1.0, address)]) for address in asked]
            if all(found):
                values = tuple(each.value for each in found)
                costs.setdefault(row.id, {}).setdefault(values, (row, block))
    return [
        (f"{row.name}, {block.title}" if len(own) > 1 else row.name, row.colour, values)
        for own in costs.values()
        for values, (row, block) in own.items()
    ]
