"""The table before it is drawn: blocks of rows of entries, with ranks and the text of each number.

Our table and the paper's are two `Table`s with their own columns; nothing ever merges them. An
entry without a number says why ("not run", or a dash where a method has no such stage). Best and
second best are by value, within a block and a column; another entry is marked as like the best when
the interval of its paired difference to the best contains zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from omegaconf import OmegaConf

from sweeps.evidence import Margin, Numbers, OurNumbers, PaperNumbers, Quantity, Row, Term, exact
from sweeps.results import Results, ScoreRun

NOT_RUN, NONE = "not run", "-"


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
    """A table with its own header; `references` are ceiling and floors, outside the ranking."""

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


def _rank(rows: list[TableRow], column: Column, numbers: Numbers, steps: int) -> None:
    """Mark best, second and like-the-best of one column, in place of its entries."""
    sign = -1 if column.better == "lower" else 1
    found = {
        r.id: sign * r.entries[column.id].margin.value for r in rows if r.entries[column.id].margin
    }
    places = sorted(set(found.values()), reverse=True)
    best = [name for name, value in found.items() if value == places[0]]
    for row in rows:
        old = row.entries[column.id]
        if row.id not in found or len(found) < 2:
            continue
        place = places.index(found[row.id])
        rank = ("best", "second", "")[min(place, 2)]
        like = False
        if place and old.margin.method != "exact":
            terms = [(best[0], 1.0), (row.id, -1.0)]
            gap = numbers.combine([Term(Quantity(column.id), (r, steps), w) for r, w in terms])
            like = bool(gap and gap.low is not None and gap.low <= 0 <= gap.high)
        row.entries[column.id] = Entry(old.margin, old.text, old.absent, rank, like)


def _block(numbers: Numbers, columns: Sequence[Column], steps: int, cells: Mapping) -> Block:
    rows = [
        TableRow(init, numbers.layout["rows"][init], entries, n)
        for init, (entries, n) in cells.items()
    ]
    for column in columns:
        if column.ranked:
            _rank(rows, column, numbers, steps)
    return Block(steps, rows)


def our_table(results: Results, scale: str, layout: Mapping | None = None) -> Table:
    """Our table from what has been run.

    Raises:
        ValueError: a column would mix exact and proxy values.
    """
    layout = layout or load_yaml("columns.yaml")
    numbers = OurNumbers(results, layout)
    columns = [
        Column(
            name,
            c["heading"],
            c["unit"],
            c["better"],
            c["digits"],
            c["ranked"],
            c.get("metric", ""),
        )
        for name, c in layout["columns"].items()
    ]
    _one_kind_per_column(results, columns)
    blocks = []
    for steps in results.steps:
        cells = {
            init: (_our_entries(numbers, columns, (init, steps)), _counts(results, (init, steps)))
            for init in layout["rows"]
        }
        blocks.append(_block(numbers, columns, steps, cells))
    references = [
        _reference(name, run, columns)
        for name, run in results.references.items()
        if run is not None
    ]
    return Table(
        f"Ours, {scale} scale", columns, blocks, references, _caption(results), _notes(columns)
    )


def _our_entries(numbers: OurNumbers, columns: Sequence[Column], row: Row) -> dict[str, Entry]:
    stage1_only = row[0] in numbers.layout["no_stage2"]
    started = any(cell.cost for cell in numbers.results.of(*row))
    entries = {}
    for column in columns:
        margin = numbers.combine([Term(Quantity(column.id), row, 1.0)])
        absent = NONE if stage1_only and started and column.id in ("time", "steps") else NOT_RUN
        entries[column.id] = entry(margin, column, absent)
    return entries


def _counts(results: Results, row: Row) -> str:
    runs = [cell.stage3 for cell in results.of(*row) if cell.stage3]
    clips = {score.n for run in runs for score in run.scores.values()}
    return f"{len(runs)} × {max(clips)}" if clips else NONE


def _reference(name: str, run: ScoreRun, columns: Sequence[Column]) -> TableRow:
    entries = {}
    for column in columns:
        score = run.scores.get(column.metric) if column.metric else None
        margin = (
            Margin(score.value, score.low, score.high, "the score's own interval")
            if score
            else None
        )
        entries[column.id] = entry(margin, column, NONE)
    return TableRow(name, name, entries, f"{max((s.n for s in run.scores.values()), default=0)}")


def _one_kind_per_column(results: Results, columns: Sequence[Column]) -> None:
    runs = [cell.stage3 for cell in results.cells.values() if cell.stage3]
    for column in columns:
        kinds = {run.scores[column.metric].kind for run in runs if column.metric in run.scores}
        if len(kinds) > 1:
            raise ValueError(
                f"column {column.heading}: the score runs disagree on the kind of "
                f"{column.metric} ({', '.join(sorted(kinds))}); score all cells with one version"
            )


def _caption(results: Results) -> str:
    done = sum(cell.stage3 is not None for cell in results.cells.values())
    seeds = ", ".join(map(str, results.seeds))
    how = (
        f"mean over seeds {seeds} ± half of Student's 95% interval over seeds"
        if len(results.seeds) > 1
        else f"seed {seeds}, ± half of the score's 95% interval over prompts: it says nothing of "
        "how much another training would differ"
    )
    return (
        f"{done} of {len(results.cells)} cells. Values: {how}. n: seeds × clips. Bold: best; "
        "underlined: second best, by value, within a block. ≈: not distinguishable from the best "
        "(the 95% interval of the paired difference contains 0)."
    )


def _notes(columns: Sequence[Column]) -> tuple[str, ...]:
    proxies = ", ".join(c.heading for c in columns if c.metric)
    return (
        f"{proxies} are measured in the tiny world by code of this project. They have the form of "
        "VBench, Dynamic Degree and VisionReward but are proxies: never compare them with those.",
        "Stage-2 time: device-seconds of Stage 2 with the curation of its pairs. Extra storage: "
        "bytes of stored pairs on disk. Stage 2 is shared by the three blocks.",
    )


def paper_table() -> Table:
    """The paper's Table 2 as printed; best and second are computed from the printed numbers."""
    paper, layout = load_yaml("paper.yaml"), load_yaml("columns.yaml")
    columns = [
        Column(name, c["heading"], c["unit"], c["better"], c["digits"], c["ranked"])
        for name, c in paper["columns"].items()
    ]
    numbers = PaperNumbers(paper, layout)
    blocks = []
    for steps in paper["blocks"]:
        cells = {}
        for init in paper["blocks"][steps]:
            printed = {c.id: numbers.cell((init, steps), c.id) for c in columns}
            margins = {name: None if v is None else exact(v) for name, v in printed.items()}
            cells[init] = {c.id: entry(margins[c.id], c, NONE) for c in columns}, ""
        blocks.append(_block(numbers, columns, steps, cells))
    source = paper["source"]
    caption = f"{source['table']} of arXiv {source['arxiv']}, as printed."
    return Table(paper["header"], columns, blocks, (), caption, tuple(paper["notes"]))
