"""`python -m sweeps table`: the report of a sweep from whatever has been run so far.

Prints our table, the paper's as a block of its own and the answered claims: drawn on a terminal,
Markdown when the output is a file or a pipe. Writes the same as table.md, our numbers as table.csv,
every score as records.csv, and everything with pictures as one self-contained index.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from datamodules.atomic import write_text
from sweeps.plan.graph import Sweep, load_sweep
from sweeps.report import render
from sweeps.report.claims import Group, Verdict, judge
from sweeps.report.frame import Frame
from sweeps.report.frontiers import frontier_tables
from sweeps.report.intervals import FrameNumbers
from sweeps.report.layout import load_layout
from sweeps.report.provenance import provenance
from sweeps.report.table import Table, our_table, paper_table
from sweeps.report.text_tables import TextTable, text_tables


@dataclass(frozen=True)
class Report:
    """Contents of a report, except figures."""

    title: str
    numbers: FrameNumbers
    ours: Table | None
    paper: Table | None
    groups: Sequence[Group]
    tables: Sequence[TextTable]
    provenance: Mapping[str, str]

    @property
    def verdicts(self) -> list[Verdict]:
        """The answers to all claims, without the preconditions."""
        claimed = (group for group in self.groups if not group.preconditions)
        return [verdict for group in claimed for verdict in group.verdicts]

    @cached_property
    def summary(self) -> str:
        """How many claims have which answer, and from how much; "" where none are made."""
        return render.summary(self.groups, self.numbers.frame) if self.groups else ""


def main(sweep: str, scale: str, seeds: list[int], runs_dir: Path, out: Path | None = None) -> None:
    """Print the report and write it below `out` (default: runs_dir/tables/<sweep>-<scale>).

    Raises:
        FileNotFoundError: no such sweep, scale or table.
        ValueError: a result file cannot be read (it is named).
    """
    planned = load_sweep(sweep, scale, seeds, runs=runs_dir)
    name = f"{planned.name}-{planned.scale}" if planned.scale else planned.name
    folder = out or runs_dir / "tables" / name
    show(write(planned, runs_dir, folder), folder)


def report_on(sweep: Sweep, runs_dir: Path) -> Report:
    """The report of the runs of a sweep in `runs_dir` so far."""
    layout = load_layout(sweep)
    numbers = FrameNumbers(Frame(sweep, runs_dir, layout))
    return Report(
        sweep.title or sweep.name,
        numbers,
        our_table(numbers),
        paper_table(layout),
        judge(layout.claims, numbers, layout.preconditions),
        [*text_tables(numbers), *frontier_tables(numbers)],
        provenance(sweep, runs_dir),
    )


def write(sweep: Sweep, runs_dir: Path, folder: Path) -> Report:
    """Write table.md, table.csv, records.csv and index.html to `folder`; returns their content."""
    from sweeps.report.page import page

    report = report_on(sweep, runs_dir)
    frame = report.numbers.frame
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", render.markdown(report))
    if report.ours:
        write_text(folder / "table.csv", render.table_csv(report.ours))
    write_text(folder / "records.csv", render.records_csv(frame.labels, frame.records()))
    write_text(folder / "index.html", page(report))
    return report


def show(report: Report, folder: Path) -> None:
    """Print to the terminal, or as Markdown where there is none."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        for table in filter(None, (report.ours, report.paper)):
            console.print(*render.rich_tables(table, console.width))
            for note in (table.caption, *table.notes):
                console.print(note, style="dim", highlight=False)
        for group in report.groups:
            heading = group.title or report.numbers.layout.claims.get("heading", "")
            console.print(render.rich_claims(group.verdicts, heading))
    else:
        console.file.write(render.markdown(report))
    console.print(f"\nPage with figures: {folder / 'index.html'}", soft_wrap=True, markup=False)
