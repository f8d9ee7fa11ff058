"""A `Table` as Markdown, CSV and a rich table for the terminal.

CSV holds numbers as measured (full precision, empty when absent), one line per row, with the ends
of each interval in their own fields, so that it can be read back without parsing text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence

from sweeps.report.claims import Verdict
from sweeps.report.layout import Column, Entry, Table, TableRow

MARK = {"holds": "✓", "does not hold": "✗", "not distinguishable": "≈", "not run": "·"}
PLURAL = {
    "holds": "hold",
    "does not hold": "do not",
    "not distinguishable": "are not distinguishable",
    "not run": "were not run",
}


def _lines(table: Table) -> Iterator[tuple[str, TableRow]]:
    for block in table.blocks:
        for index, row in enumerate(block.rows):
            yield (f"{block.steps}-step" if index == 0 else ""), row
    for row in table.references:
        yield "", row


def _markdown_entry(entry: Entry) -> str:
    text = entry.text + (" ≈" if entry.like_best else "")
    return {"best": f"**{text}**", "second": f"<u>{text}</u>"}.get(entry.rank, text)


def _has_counts(table: Table) -> bool:
    return any(row.n for _, row in _lines(table))


def markdown_table(table: Table) -> str:
    """The table with its heading, caption and notes."""
    counts = _has_counts(table)
    head = [
        "steps",
        "initialisation",
        *(c.title for c in table.columns),
        *(["n"] if counts else []),
    ]
    lines = [f"### {table.heading}", "", f"| {' | '.join(head)} |"]
    lines.append("|---|---|" + "---:|" * (len(head) - 2))
    for steps, row in _lines(table):
        entries = [_markdown_entry(row.entries[c.id]) for c in table.columns]
        cells = [steps, row.label, *entries, *([row.n] if counts else [])]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", table.caption, *(f"- {note}" for note in table.notes), ""]
    return "\n".join(lines)


def signed(value: float) -> str:
    """A margin's value with its sign, in three significant digits; zero without a sign."""
    return "0" if value == 0 else f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.3g}"


def margin_text(verdict: Verdict) -> str:
    """The comparison that decides a claim, with its margin: positive speaks for the claim."""
    answer = verdict.hardest
    if answer is None:
        missing = next((a.label for a in verdict.answers if a.margin is None), "")
        return f"no numbers for: {missing}" if missing else ""
    margin = answer.margin
    text = f"{answer.label}: {signed(margin.value)}"
    if margin.low == margin.high == margin.value:
        return text
    if margin.low is None:
        return f"{text} ({margin.method})"
    return f"{text} [{signed(margin.low)}, {signed(margin.high)}], {margin.method}"


def badge(verdict: Verdict) -> str:
    """The answer as printed, with the number of seeds that it rests on."""
    seeds = f" ({verdict.seeds} seed{'s' if verdict.seeds > 1 else ''})"
    known = verdict.seeds and verdict.verdict != "not run"
    return f"{MARK[verdict.verdict]} {verdict.verdict}{seeds if known else ''}"


def tally(verdict: Verdict) -> str:
    """How many of a claim's comparisons speak for it."""
    held = sum(answer.verdict == "holds" for answer in verdict.answers)
    return f"{held} of {len(verdict.answers)}"


def markdown_claims(verdicts: Sequence[Verdict]) -> str:
    """The claims with their verdicts and the numbers that decide them."""
    lines = ["### The paper's statements, answered from our numbers", ""]
    lines += [
        "| statement | in the paper | ours | comparisons | deciding margin (positive: for it) |"
    ]
    lines += ["|---|---|---|---|---|"]
    for v in verdicts:
        lines.append(f"| {v.sentence} | {v.where} | {badge(v)} | {tally(v)} | {margin_text(v)} |")
    return "\n".join([*lines, ""])


def csv_text(table: Table) -> str:
    """The table's numbers, one line per row; absent numbers are empty fields."""
    fields = ["few_steps", "init", "n"]
    for column in table.columns:
        fields += [column.id, f"{column.id}_low", f"{column.id}_high", f"{column.id}_rank"]
    out = io.StringIO()
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    for steps, row in [(b.steps, row) for b in table.blocks for row in b.rows]:
        writer.writerow({"few_steps": steps, **_csv_row(row, table.columns)})
    for row in table.references:
        writer.writerow({"few_steps": "", **_csv_row(row, table.columns)})
    return out.getvalue()


def _csv_row(row: TableRow, columns: Sequence[Column]) -> dict[str, str]:
    values = {"init": row.id, "n": row.n}
    for column in columns:
        entry = row.entries[column.id]
        if entry.margin:
            values[column.id] = repr(entry.margin.value)
            ends = {"low": entry.margin.low, "high": entry.margin.high}
            values |= {f"{column.id}_{k}": repr(v) for k, v in ends.items() if v is not None}
            values[f"{column.id}_rank"] = entry.rank
    return values


def rich_tables(table: Table, width: int) -> list:
    """The table for a terminal of `width` characters: in parts of as many columns as fit."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    rows = list(_lines(table))
    ends = {id(block.rows[-1]) for block in table.blocks}
    label_width = min(16, max(len(row.label) for _, row in rows))
    parts = []
    for columns in _fitting(table, width - len("1-step") - label_width - 6):
        title = table.heading if not parts else f"{table.heading}, continued"
        drawn = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        drawn.add_column("steps", no_wrap=True)
        drawn.add_column("init", width=label_width)
        for column in columns:
            heading, least = Text(column.title if column else "n"), _needs(table, column)
            drawn.add_column(heading, justify="right", width=least)
        for steps, row in rows:
            cells = [_rich_entry(row, column, Text) for column in columns]
            drawn.add_row(steps, row.label, *cells, end_section=id(row) in ends)
        parts.append(drawn)
    return parts


def _terminal_text(row: TableRow, column: Column | None) -> str:
    if column is None:
        return row.n.replace(" ", "")
    entry = row.entries[column.id]
    return entry.text.replace(" ± ", "±") + ("≈" if entry.like_best else "")


def _rich_entry(row: TableRow, column: Column | None, text: Callable) -> object:
    entry = row.entries[column.id] if column else None
    style = {"best": "bold green", "second": "underline"}.get(entry.rank, "") if entry else ""
    dim = "dim" if entry and entry.absent else ""
    return text(_terminal_text(row, column), style=style or dim, no_wrap=True)


def _needs(table: Table, column: Column | None) -> int:
    words = column.title.split() if column else ["n"]
    texts = [_terminal_text(row, column) for _, row in _lines(table)]
    return max(map(len, [*words, *texts]))


def _fitting(table: Table, width: int) -> list[list[Column | None]]:
    """The columns in groups that fit a width; None stands for the counts."""
    groups: list[list[Column | None]] = [[]]
    left = width
    for column in [*table.columns, *([None] if _has_counts(table) else [])]:
        needs = _needs(table, column) + 2
        if needs > left and column is None:
            break  # a part of its own for the counts alone is not worth the lines
        if needs > left and groups[-1]:
            groups.append([])
            left = width
        groups[-1].append(column)
        left -= needs
    return groups


def rich_claims(
    verdicts: Sequence[Verdict], title: str = "The paper's statements, answered from our numbers"
):
    """The claims for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    colour = {"holds": "green", "does not hold": "red", "not run": "dim"}
    drawn = RichTable(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("statement", "ours", "deciding margin (positive: for it)"):
        drawn.add_column(name, overflow="fold")
    for v in verdicts:
        said = Text(badge(v), style=colour.get(v.verdict, "yellow"))
        drawn.add_row(v.sentence, said, margin_text(v))
    return drawn
