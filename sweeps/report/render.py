"""A `Report` as Markdown, CSV and rich tables for the terminal.

CSV holds numbers as measured (full precision, empty when absent), one line per row, with the ends
of each interval in their own fields, so that it can be read back without parsing text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sweeps.report.claims import NOT_ANSWERABLE, Group, Verdict
from sweeps.report.frame import Frame
from sweeps.report.intervals import NOT_RUN
from sweeps.report.layout import Column, label_text
from sweeps.report.table import Entry, Row, Table
from sweeps.report.text_tables import TextTable

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from sweeps.report.command import Report

MARK = {
    "holds": "✓",
    "does not hold": "✗",
    "not distinguishable": "≈",
    "not run": "·",
    "not answerable here": "?",
}
PLURAL = {
    "holds": "hold",
    "does not hold": "do not",
    "not distinguishable": "are not distinguishable",
    "not run": "were not run",
    "not answerable here": "are not answerable here",
}
DECIDING = "deciding margin (positive: for it)"


def markdown(report: Report) -> str:
    """The whole report, except figures."""
    parts = [f"## {report.title}", ""]
    parts += [markdown_table(table) for table in (report.ours, report.paper) if table]
    parts += [f"{report.summary}\n"] if report.summary else []
    for group in report.groups:
        heading = group.title or report.numbers.layout.claims.get("heading", "")
        parts += [f"### {heading}", "", markdown_claims(group.verdicts)]
    for table in report.tables:
        parts += [f"### {table.title}", "", *markdown_text_table(table)]
    parts += ["### Where the numbers come from", ""]
    parts += [f"- {name}: {value}" for name, value in report.provenance.items()]
    return "\n".join([*parts, ""])


def summary(groups: Sequence[Group], frame: Frame) -> str:
    """How many preconditions hold, how many claims have which answer, and from how much."""
    before = [v.verdict for group in groups if group.preconditions for v in group.verdicts]
    groups = [group for group in groups if not group.preconditions]
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    found = [verdict.verdict for verdict in verdicts]
    counted = [f"{found.count(name)} {PLURAL[name]}" for name in MARK if name in found]
    held = f"{before.count('holds')} of {len(before)} preconditions hold. " if before else ""
    if before and set(before) == {NOT_RUN}:
        held = f"None of the {len(before)} preconditions can be told yet. "
    constructed = sum(group.constructed for group in groups)
    checks = f" {constructed} of them are true by construction: they check the code."
    done, planned = frame.counts
    most = max(len(verdict.answers) for verdict in verdicts)
    return (
        f"{held}{len(found)} statements: {', '.join(counted)}.{checks if constructed else ''} "
        f'"Does not hold" needs one comparison of a statement (of up to {most}) with its whole '
        f"interval on the wrong side, uncorrected for their number. Score runs: {done} of "
        f"{planned}; seeds {', '.join(map(str, frame.seeds))}."
    )


def _line(cells: Sequence[str]) -> str:
    """A line of a Markdown table; the bars of `Var(x | y)` would end a cell."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _lines(table: Table) -> Iterator[tuple[str, Row]]:
    for block in table.blocks:
        for index, row in enumerate(block.rows):
            yield (block.title if index == 0 else ""), row
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
    blocks = [table.heads[0]] if table.heads[0] else []
    head = [*blocks, table.heads[1], *(c.title for c in table.columns), *(["n"] if counts else [])]
    left = len(blocks) + 1
    lines = [f"### {table.heading}", "", _line(head)]
    lines.append("|" + "---|" * left + "---:|" * (len(head) - left))
    for title, row in _lines(table):
        entries = [_markdown_entry(row.entries[c.id]) for c in table.columns]
        cells = [*([title] if blocks else []), row.name, *entries, *([row.n] if counts else [])]
        lines.append(_line(cells))
    return "\n".join([*lines, "", table.caption, *(f"- {note}" for note in table.notes), ""])


def markdown_text_table(table: TextTable) -> list[str]:
    """A table of texts with its note, as lines."""
    rule = "|---|" + "---:|" * (len(table.head) - 1)
    return [_line(table.head), rule, *map(_line, table.rows), "", table.note, ""]


def signed(value: float) -> str:
    """A margin's value with its sign, in three significant digits; zero without a sign."""
    return "0" if value == 0 else f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.3g}"


def margin_text(verdict: Verdict) -> str:
    """The comparison that decides a claim, with its margin: positive speaks for the claim."""
    if verdict.verdict == NOT_ANSWERABLE:
        unmet = "; ".join(f"{v.sentence.rstrip('.')} ({v.verdict})" for v in verdict.unmet)
        return f"its preconditions: {unmet}"
    answer = verdict.hardest
    if answer is None:
        asked = [a for v in (verdict, *verdict.unmet) for a in v.answers]
        missing = next((a.label for a in asked if a.margin is None), "")
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
    known = verdict.seeds and verdict.verdict not in ("not run", NOT_ANSWERABLE)
    return f"{MARK[verdict.verdict]} {verdict.verdict}{seeds if known else ''}"


def tally(verdict: Verdict) -> str:
    """How many of a claim's comparisons speak for it."""
    held = sum(answer.verdict == "holds" for answer in verdict.answers)
    return f"{held} of {len(verdict.answers)}"


def anchor(title: str) -> str:
    """A title as the id of its section."""
    return title.lower().replace(" ", "-")


def markdown_claims(verdicts: Sequence[Verdict]) -> str:
    """The claims with their verdicts and the numbers that decide them."""
    lines = [_line(["statement", "in the paper", "ours", "comparisons", DECIDING])]
    lines.append("|---|---|---|---|---|")
    for v in verdicts:
        lines.append(_line([v.sentence, v.where, badge(v), tally(v), margin_text(v)]))
    return "\n".join([*lines, ""])


def table_csv(table: Table) -> str:
    """The table's numbers, one line per row with all labels; absent numbers are empty fields."""
    fields = [*table.labels, "n"]
    for column in table.columns:
        fields += [column.id, f"{column.id}_low", f"{column.id}_high", f"{column.id}_rank"]
    rows = [*table.rows, *table.references]
    return _csv(fields, (_csv_row(row, table.columns) for row in rows))


def records_csv(labels: Sequence[str], records: Iterable[Mapping[str, Any]]) -> str:
    """All scores in long form, a line each."""
    fields = [*labels, "seed", "run", "folder", "metric", "value", "low", "high", "n"]
    return _csv(fields, records)


def _csv(fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _csv_row(row: Row, columns: Sequence[Column]) -> dict[str, str]:
    values = {label: label_text(value) for label, value in row.labels.items()} | {"n": row.n}
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
    label_width = min(16, max(len(row.name) for _, row in rows))
    parts = []
    block_width = max(len(block.title) for block in table.blocks)
    for columns in _fitting(table, width - block_width - label_width - 6):
        title = table.heading if not parts else f"{table.heading}, continued"
        drawn = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        drawn.add_column(table.heads[0], no_wrap=True)
        drawn.add_column(table.heads[1], width=label_width)
        for column in columns:
            heading, least = Text(column.title if column else "n"), _needs(table, column)
            drawn.add_column(heading, justify="right", width=least)
        for block, row in rows:
            cells = [_rich_entry(row, column, Text) for column in columns]
            drawn.add_row(block, row.name, *cells, end_section=id(row) in ends)
        parts.append(drawn)
    return parts


def _terminal_text(row: Row, column: Column | None) -> str:
    if column is None:
        return row.n.replace(" ", "")
    entry = row.entries[column.id]
    return entry.text.replace(" ± ", "±") + ("≈" if entry.like_best else "")


def _rich_entry(row: Row, column: Column | None, text: Callable) -> object:
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


def rich_claims(verdicts: Sequence[Verdict], title: str) -> RichTable:
    """The claims for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    colour = {"holds": "green", "does not hold": "red", "not run": "dim"}
    drawn = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("statement", "ours", DECIDING):
        drawn.add_column(name, overflow="fold")
    for v in verdicts:
        said = Text(badge(v), style=colour.get(v.verdict, "yellow"))
        drawn.add_row(v.sentence, said, margin_text(v))
    return drawn
