"""Free-form tables of numbers, as described in a layout's `tables`::

    - title: Few-step error
      note: what to know to read it
      head: [initialisation, 1-step, 2-step]
      rows:
        - {each: {init: init}, cells: ["{init}", "{init}-1/before/law.energy", ...]}

A row is repeated for every combination of `each`, whose values are lists, or names of labels: all
of that label's values. The first cell is a text, in which a label's value has its name; the others
are addresses (frame.py), or `order(COARSE, FINE, TIMES)`: the order of the error between two.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.report.frame import Frame
from sweeps.report.intervals import Estimate, FrameNumbers, shown
from sweeps.report.layout import Layout, label_text

ORDER = re.compile(r"order\((\S+), (\S+), (\d+)\)")


@dataclass(frozen=True)
class TextTable:
    """A table of texts with a title, and what to know to read it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def text_tables(numbers: FrameNumbers) -> list[TextTable]:
    """All tables that the layout describes."""
    return [
        TextTable(said["title"], said["head"], _rows(said["rows"], numbers), said.get("note", ""))
        for said in numbers.layout.tables
    ]


def _rows(said: Sequence[Mapping[str, Any]], numbers: FrameNumbers) -> list[list[str]]:
    rows = []
    for row in said:
        first, *cells = row["cells"]
        for values in combinations(row.get("each") or {}, numbers.frame):
            title = first.format(**names(row["each"], values, numbers.layout)) if values else first
            rows.append([title, *(_cell(cell.format(**values), numbers) for cell in cells)])
    return rows


def combinations(each: Mapping[str, Any], frame: Frame) -> Iterator[dict[str, str]]:
    """Every combination of `each`: lists of values, or names of labels."""
    lists = [v if isinstance(v, list) else frame.label_values(v) for v in each.values()]
    for values in itertools.product(*lists):
        yield dict(zip(each, map(label_text, values), strict=True))


def names(each: Mapping[str, Any], values: Mapping[str, str], layout: Layout) -> dict[str, str]:
    """What the values of a combination are called."""
    return {
        key: layout.name(each[key] if isinstance(each[key], str) else key, value)
        for key, value in values.items()
    }


def number_at(address: str, numbers: FrameNumbers) -> Estimate | None:
    """The number of an address or of an `order(...)`."""
    if found := ORDER.fullmatch(address):
        return numbers.order(found[1], found[2], float(found[3]))
    return numbers.estimate([(1.0, address)])


def _cell(address: str, numbers: FrameNumbers) -> str:
    """A number as printed; a dash where the sweep has no such number."""
    margin = number_at(address, numbers)
    if margin is None:
        found = ORDER.fullmatch(address)
        place = numbers.frame.place((found[1] if found else address).rpartition("/")[0])
        if place is None or place.done:
            return "-"
    return shown(margin)
