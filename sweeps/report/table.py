"""The table of a sweep, and the paper's printed table.

Our table and the paper's are two `Table`s with their own columns; nothing ever merges them. An
entry without a number says why: "not run", "skipped" by its metric, or a dash where a method has
no such stage or the sweep no such run.

A row is a combination of the labels that differ between cells, but for the seed and the label
whose values make blocks. Best and second best are by value, within a block and a column; another
entry is marked as like the best when the interval of its paired difference to the best contains
zero. References (teachers, ceiling, floors) stand outside the ranking.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sweeps.report import cost
from sweeps.report.frame import Place
from sweeps.report.intervals import (
    NOT_RUN,
    Estimate,
    FrameNumbers,
    Numbers,
    PaperNumbers,
    shown,
)
from sweeps.report.layout import Column, Layout, label_text, spare_colours
from sweeps.report.results import ScoreRun

SKIPPED, NONE = "skipped", "-"
ELSEWHERE = ("vbench.", "vision_reward.")
"""Metrics of programs with environments of their own; `experiments results` reads them back."""


@dataclass(frozen=True)
class Entry:
    """One number with its interval; `margin` is None when there is none, and `absent` says why."""

    margin: Estimate | None
    text: str
    absent: str = ""
    rank: str = ""  # "best", "second" or ""
    like_best: bool = False


@dataclass(frozen=True)
class Row:
    """A row: its cell's labels, the address of its run, its name, its entries by column."""

    labels: Mapping[str, Any]
    address: str
    id: str
    name: str
    colour: str
    entries: dict[str, Entry]
    n: str = ""


@dataclass(frozen=True)
class Block:
    """The rows that are compared with each other; `title` is "" when there is one block only."""

    title: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Table:
    """A table with its own header; `references` are outside the ranking."""

    heading: str
    columns: Sequence[Column]
    blocks: Sequence[Block]
    references: Sequence[Row] = ()
    caption: str = ""
    notes: Sequence[str] = field(default_factory=tuple)
    labels: Sequence[str] = ()  # of all cells, in the order of the axes
    heads: tuple[str, str] = ("", "")  # of the blocks' titles and of the rows' names

    @property
    def rows(self) -> list[Row]:
        """All rows of the blocks."""
        return [row for block in self.blocks for row in block.rows]


def our_table(numbers: FrameNumbers) -> Table | None:
    """Our table from the finished runs; None if the layout has none.

    Raises:
        ValueError: a column would mix exact and proxy values, calibrations or wordings of prompts,
            or ranks against its metric.
    """
    layout, frame = numbers.layout, numbers.frame
    if not layout.ranking:
        return None
    columns = list(layout.columns.values())
    _check_columns(frame.places.values(), columns)
    places = [place for place in frame.places.values() if layout.run in ("", place.name)]
    reference = {place.address: layout.rank_of_reference(place.labels) for place in places}
    inside = [place for place in places if reference[place.address] is None]
    ranked = [place for place in inside if not layout.is_control(place.labels)]
    outside = [place for place in places if reference[place.address] is not None]
    outside.sort(key=lambda place: reference[place.address])
    told = _telling(ranked, layout)
    blocks: dict[Any, list[Row]] = {}
    colours, spare = dict(layout.colours), spare_colours(layout.colours.values())
    for place in _in_order(inside, told, numbers):
        row = _row(place, told, numbers)
        if row.id not in colours:
            colours[row.id] = next(spare)
        members = blocks.setdefault(place.labels.get(layout.blocks), [])
        members.append(replace(row, colour=colours[row.id]))
    shown = []
    for at in sorted(blocks, key=layout.order_of_block):
        rows = [row for row in blocks[at] if not layout.is_control(row.labels)]
        controls = [row for row in blocks[at] if layout.is_control(row.labels)]
        block = _ranked(_title(layout, at), rows, columns, numbers)
        shown.append(replace(block, rows=[*block.rows, *controls]))
    head = layout.head(layout.blocks) if layout.blocks else ""
    return Table(
        f"Ours, {frame.sweep.scale} scale",
        columns,
        shown,
        [_row(place, told, numbers) for place in outside],
        _caption(ranked, frame.seeds),
        layout.notes,
        frame.labels,
        (head, ", ".join(map(layout.head, told))),
    )


def _title(layout: Layout, at: Any) -> str:
    return layout.name(layout.blocks, at) if layout.blocks and at is not None else ""


def _telling(places: Sequence[Place], layout: Layout) -> list[str]:
    """The labels that tell rows apart; of a single row all but the block's."""
    values: dict[str, set[str]] = {}
    for place in places:
        for label, value in place.tags(layout.run).items():
            values.setdefault(label, set()).add(label_text(value))
    values.pop(layout.blocks, None)
    return [label for label, found in values.items() if len(found) > 1] or list(values)


def _in_order(places: Iterable[Place], told: Sequence[str], numbers: FrameNumbers) -> list[Place]:
    """As the layout's names have them, then as the axes do."""
    order = {label: numbers.frame.label_values(label) for label in numbers.frame.labels}

    def key(place: Place) -> list[int]:
        return [
            order[label].index(place.labels[label]) if label in place.labels else -1
            for label in told
            if label in order
        ]

    return sorted(places, key=key)


def _row(place: Place, told: Sequence[str], numbers: FrameNumbers) -> Row:
    layout = numbers.layout
    outside = layout.rank_of_reference(place.labels) is not None
    tags = place.tags(layout.run)
    tags = {label: tags[label] for label in told if label in tags} or tags
    started = any(numbers.frame.cost_of(place, seed) for seed in place.planned)
    entries = {}
    for column in layout.columns.values():
        address = f"{place.address}/{column.id}"
        margin = numbers.reference(address) if outside else numbers.estimate([(1.0, address)])
        elsewhere = column.run or column.metric.startswith(ELSEWHERE)
        absent = SKIPPED if place.done and not elsewhere else NOT_RUN
        cell = place.address.rpartition("/")[0]
        if column.run and numbers.frame.place(f"{cell}/{column.run}") is None:
            absent = NONE
        if column.metric.startswith(cost.PREFIX):
            absent = NONE if started or outside else NOT_RUN
            margin = None if outside else margin
        entries[column.id] = _entry(margin, column, absent)
    id = "-".join(map(label_text, tags.values()))
    name = ", ".join(layout.name(label, value) for label, value in tags.items())
    name = id if len(tags) == 1 and not set(tags) <= set(layout.names) else name
    return Row(place.labels, place.address, id, name, "", entries, _runs_by_clips(place.done))


def _ranked(title: str, rows: list[Row], columns: Sequence[Column], numbers: Numbers) -> Block:
    for column in columns:
        if column.ranked:
            _rank(rows, column, numbers)
    return Block(title, rows)


def _rank(rows: Sequence[Row], column: Column, numbers: Numbers) -> None:
    """Mark best, second and like-the-best of one column, in place of its entries."""
    margins = {row.address: row.entries[column.id].margin for row in rows}
    found = {address: column.sign * m.value for address, m in margins.items() if m}
    if len(found) < 2:
        return
    levels = sorted(set(found.values()), reverse=True)
    best = next(address for address, value in found.items() if value == levels[0])
    for row in rows:
        if row.address not in found:
            continue
        level = levels.index(found[row.address])
        old, like = row.entries[column.id], False
        if level and old.margin.method != "exact":
            terms = [(1.0, f"{best}/{column.id}"), (-1.0, f"{row.address}/{column.id}")]
            gap = numbers.estimate(terms)
            like = bool(gap and gap.low is not None and gap.low <= 0 <= gap.high)
        rank = ("best", "second", "")[min(level, 2)]
        row.entries[column.id] = replace(old, rank=rank, like_best=like)


def _entry(margin: Estimate | None, column: Column, absent: str) -> Entry:
    return Entry(margin, shown(margin, column, absent), "" if margin else absent)


def _runs_by_clips(runs: Sequence[ScoreRun]) -> str:
    clips = {score.n for run in runs for score in run.scores.values()}
    return f"{len(runs)} × {max(clips)}" if clips else NONE


def _check_columns(places: Iterable[Place], columns: Sequence[Column]) -> None:
    runs = {run.folder: run for place in places for run in place.done}.values()
    by = {s.calibration: run for run in runs for s in run.scores.values() if s.calibration}
    if len(by) > 1:
        folders = ", ".join(f"{run.folder.name} ({hash})" for hash, run in by.items())
        raise ValueError(
            f"the score runs were made with different calibrations: {folders}; delete the run "
            "folders of those that are not the scale's calibration and run the sweep again"
        )
    for column in columns:
        found = [run.scores[column.metric] for run in runs if column.metric in run.scores]
        if len({score.kind for score in found}) > 1:
            kinds = ", ".join(sorted({score.kind for score in found}))
            raise ValueError(
                f"column {column.heading}: the score runs disagree on the kind of {column.metric} "
                f"({kinds}); score all cells with one version"
            )
        if len(wordings := {score.wording for score in found}) > 1:
            raise ValueError(
                f"column {column.heading}: judged by prompts of different wordings"
                f" ({', '.join(sorted(wordings))}): score all cells with one scoring.wording"
            )
        says = {score.higher_is_better for score in found} - {None, column.better == "higher"}
        if says:
            raise ValueError(
                f"judges.yaml: {column.id} is better {column.better}, but its records of "
                f"{column.metric} say higher_is_better: {says.pop()}"
            )


def _caption(places: Sequence[Place], seeds: Sequence[int]) -> str:
    runs = [run for place in places for run in place.scored.values()]
    told = ", ".join(map(str, sorted(seeds)))
    how = (
        f"mean over seeds {told} ± half of Student's 95% interval over seeds"
        if len(seeds) > 1
        else f"seed {told}, ± half of the score's 95% interval over prompts: it says nothing of "
        "how much another training would differ"
    )
    return (
        f"{sum(run is not None for run in runs)} of {len(runs)} cells. Values: {how}. n: score runs"
        " × clips. Bold: best; underlined: second best, by value, within a block. ≈: not"
        " distinguishable from the best (the 95% interval of the paired difference contains 0)."
    )


def paper_table(layout: Layout) -> Table | None:
    """The table of `paper.yaml` as printed; best and second are computed from the printed numbers.

    None if the sweep has no printed counterpart.
    """
    paper = layout.paper
    if not paper:
        return None
    columns = [Column(name, **said) for name, said in paper["columns"].items()]
    numbers = PaperNumbers(paper, layout)
    blocks: dict[str, list[Row]] = {}
    for at, printed in paper["blocks"].items():
        for id in printed:
            address = f"{id}-{at}/{layout.run}"
            margins = {c: numbers.estimate([(1.0, f"{address}/{c.id}")]) for c in columns}
            entries = {c.id: _entry(margin, c, NONE) for c, margin in margins.items()}
            name = layout.name(paper["rows"], id)
            if not layout.blocks:
                name = f"{name}, {layout.name(paper['blocks_of'], at)}"
            row = Row({paper["rows"]: id}, address, id, name, "", entries)
            blocks.setdefault(_title(layout, at), []).append(row)
    ranked = [_ranked(title, rows, columns, numbers) for title, rows in blocks.items()]
    caption = f"{paper['source']['table']} of arXiv {paper['source']['arxiv']}, as printed."
    heads = layout.head(layout.blocks), layout.head(paper["rows"])
    return Table(paper["header"], columns, ranked, (), caption, paper["notes"], (), heads)
