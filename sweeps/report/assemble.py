"""Our table and the paper's, put together from numbers.

Best and second best are by value, within a block and a column; another entry is marked as like the
best when the interval of its paired difference to the best contains zero. Teachers, ceiling and
floors stand outside the ranking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sweeps.report.intervals import (
    Margin,
    Numbers,
    OurNumbers,
    PaperNumbers,
    Quantity,
    Row,
    Term,
    exact,
    mean_over_seeds,
)
from sweeps.report.layout import (
    ELSEWHERE,
    NONE,
    NOT_RUN,
    SKIPPED,
    Block,
    Column,
    Entry,
    Table,
    TableRow,
    entry,
    load_yaml,
)
from sweeps.report.results import Results, ScoreRun


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
        ValueError: a column would mix exact and proxy values, or calibrations, or ranks against its
            metric.
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
    _check_columns(results, columns)
    blocks = []
    for steps in results.steps:
        cells = {
            init: (_our_entries(numbers, columns, (init, steps)), _counts(results, (init, steps)))
            for init in layout["rows"]
        }
        blocks.append(_block(numbers, columns, steps, cells))
    references = [
        _reference(init, layout["references"].get(init, init), runs, columns)
        for init, runs in results.references.items()
    ]
    return Table(
        f"Ours, {scale} scale", columns, blocks, references, _caption(results), _notes(columns)
    )


def _our_entries(numbers: OurNumbers, columns: Sequence[Column], row: Row) -> dict[str, Entry]:
    stage1_only = row[0] in numbers.layout["no_stage2"]
    started = any(cell.cost for cell in numbers.results.of(*row))
    scored = any(cell.stage3 for cell in numbers.results.of(*row))
    entries = {}
    for column in columns:
        margin = numbers.combine([Term(Quantity(column.id), row, 1.0)])
        absent = SKIPPED if scored and _is_ours(column) else NOT_RUN
        if stage1_only and started and column.id in ("time", "stage2_steps"):
            absent = NONE
        entries[column.id] = entry(margin, column, absent)
    return entries


def _counts(results: Results, row: Row) -> str:
    return _runs_by_clips([cell.stage3 for cell in results.of(*row) if cell.stage3])


def _runs_by_clips(runs: Sequence[ScoreRun]) -> str:
    clips = {score.n for run in runs for score in run.scores.values()}
    return f"{len(runs)} × {max(clips)}" if clips else NONE


def _reference(
    init: str, label: str, runs: Sequence[ScoreRun], columns: Sequence[Column]
) -> TableRow:
    entries = {}
    for column in columns:
        absent = (SKIPPED if runs and _is_ours(column) else NOT_RUN) if column.metric else NONE
        entries[column.id] = entry(_reference_margin(runs, column.metric), column, absent)
    return TableRow(init, label, entries, _runs_by_clips(runs))


def _reference_margin(runs: Sequence[ScoreRun], metric: str) -> Margin | None:
    """Mean over the seeds with a run of their own; of a single run its own interval."""
    scores = [run.scores[metric] for run in runs if metric in run.scores]
    if len(scores) > 1:
        return mean_over_seeds([score.value for score in scores])
    return next((Margin(s.value, s.low, s.high, "the score's own interval") for s in scores), None)


def _check_columns(results: Results, columns: Sequence[Column]) -> None:
    cells = results.cells.values()
    runs = [run for cell in cells for run in (cell.stage3, cell.stage2) if run]
    runs += [run for same in results.references.values() for run in same]
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
        says = {score.higher_is_better for score in found} - {None, column.better == "higher"}
        if says:
            raise ValueError(
                f"columns.yaml: {column.id} is better {column.better}, but its records of "
                f"{column.metric} say higher_is_better: {says.pop()}"
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
        f"{done} of {len(results.cells)} cells. Values: {how}. n: score runs × clips. Bold: best; "
        "underlined: second best, by value, within a block. ≈: not distinguishable from the best "
        "(the 95% interval of the paired difference contains 0)."
    )


def _is_ours(column: Column) -> bool:
    """Whether score runs could have measured it."""
    return bool(column.metric) and not column.metric.startswith(ELSEWHERE)


def _notes(columns: Sequence[Column]) -> tuple[str, ...]:
    proxies = ", ".join(c.heading for c in columns if _is_ours(c))
    where = "" if any(c.metric.startswith(ELSEWHERE) for c in columns) else " in the tiny world"
    return (
        f"{proxies}: measured{where} by code of this project. They have the form of "
        "VBench, Dynamic Degree and VisionReward but are proxies: never compare them with those.",
        "Stage-2 time: device-seconds of Stage 2 with the curation of its pairs. Extra storage: "
        "bytes of stored pairs on disk. Stage 2 is shared by the three blocks.",
        "Dynamic is ranked by more, as in the paper; what real clips score is the ceiling row.",
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
