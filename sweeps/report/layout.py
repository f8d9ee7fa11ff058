"""The words of a table before it is drawn: columns, entries, rows, blocks.

Our table and the paper's are two `Table`s with their own columns; nothing ever merges them. An
entry without a number says why: "not run", "skipped" by its metric, or a dash where a method has
no such stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from omegaconf import OmegaConf

from sweeps.report.intervals import Margin

NOT_RUN, SKIPPED, NONE = "not run", "skipped", "-"
ELSEWHERE = ("vbench.", "vision_reward.")
"""Metrics of programs with environments of their own; `experiments results` reads them back."""


@dataclass(frozen=True)
class Column:
    """A column's name, unit, direction; `metric` is "" for costs and for printed numbers."""

    id: str
    heading: str
    unit: str
    better: str
    digits: int
    ranked: bool
    metric: str = ""

    @property
    def title(self) -> str:
        """Heading with the unit and an arrow towards better."""
        unit = f" [{self.unit}]" if self.unit and self.unit != "B" else ""
        return f"{self.heading}{unit} {'↓' if self.better == 'lower' else '↑'}"

    def text(self, value: float) -> str:
        """A value as printed."""
        if self.unit == "B":
            return human_bytes(value)
        text = f"{value:.{self.digits}f}"
        return text.removeprefix("-") if float(text) == 0 else text


@dataclass(frozen=True)
class Entry:
    """One number with its interval; `margin` is None when there is none, and `absent` says why."""

    margin: Margin | None
    text: str
    absent: str = ""
    rank: str = ""  # "best", "second" or ""
    like_best: bool = False


@dataclass(frozen=True)
class TableRow:
    """A row: which init, how it is called, its entries by column and how many seeds x clips."""

    id: str
    label: str
    entries: Mapping[str, Entry]
    n: str = ""


@dataclass(frozen=True)
class Block:
    """The rows that are compared with each other: one number of sampling steps."""

    steps: int
    rows: Sequence[TableRow]


@dataclass(frozen=True)
class Table:
    """A table with its own header; `references` are outside the ranking."""

    heading: str
    columns: Sequence[Column]
    blocks: Sequence[Block]
    references: Sequence[TableRow] = ()
    caption: str = ""
    notes: Sequence[str] = field(default_factory=tuple)


@lru_cache(maxsize=4)
def load_yaml(name: str) -> dict:
    """A YAML file of this folder as a plain dict."""
    return OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name(name)))


def columns(benchmark: bool) -> dict:
    """columns.yaml; where `benchmark` programs judge, with their columns for the proxies'."""
    layout = load_yaml("columns.yaml")
    if not benchmark:
        return layout
    found = layout["columns"] | layout["benchmark"]
    return layout | {"columns": {name: entry for name, entry in found.items() if entry}}


def human_bytes(count: float) -> str:
    """Bytes in binary units, for example 18.4 MiB; zero is "0 B"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count == 0 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def entry(margin: Margin | None, column: Column, absent: str = NOT_RUN) -> Entry:
    """The entry of a number, as "value ± half of its interval"."""
    if margin is None:
        return Entry(None, absent, absent)
    text = column.text(margin.value)
    if margin.low is not None and margin.low < margin.high:
        text += f" ± {column.text((margin.high - margin.low) / 2)}"
    return Entry(margin, text)
