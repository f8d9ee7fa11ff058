"""`python -m sweeps table`: the table of a sweep from whatever has been run so far.

Prints our table, the paper's as a block of its own and the answered claims: drawn on a terminal,
Markdown when the output is a file or a pipe. Writes the same as table.md, our numbers as table.csv
and everything with pictures as one self-contained index.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from datamodules.atomic import write_text
from sweeps.report import render
from sweeps.report.assemble import our_table, paper_table
from sweeps.report.claims import Verdict, judge, load_claims
from sweeps.report.intervals import OurNumbers
from sweeps.report.layout import Table, columns
from sweeps.report.results import Results


def main(sweep: str, scale: str, seeds: list[int], runs_dir: Path, out: Path | None = None) -> None:
    """Print the table and write it below `out` (default: runs_dir/tables/<sweep>-<scale>).

    Raises:
        FileNotFoundError: no such sweep or scale.
        ValueError: a result file cannot be read (it is named).
    """
    from sweeps.plan.graph import load_sweep
    from sweeps.report.collect import collect

    planned = load_sweep(sweep, scale, seeds)
    results = collect(planned, runs_dir)
    folder = out or runs_dir / "tables" / f"{planned.name}-{scale}"
    judged = any("benchmark" in run.recipe["needs"] for run in planned.runs.values())
    title = planned.title or planned.name
    show(write(results, scale, title, folder, columns(judged)), folder)


def write(
    results: Results, scale: str, title: str, folder: Path, layout: Mapping | None = None
) -> tuple[Table, Table, Sequence[Verdict]]:
    """Write table.md, table.csv and index.html into `folder`; returns what they show.

    Args:
        layout: of `columns`; None: the proxies'.
    """
    from sweeps.report.page import page

    layout = layout or columns(benchmark=False)
    numbers = OurNumbers(results, layout)
    ours, paper = our_table(results, scale, layout), paper_table()
    verdicts = judge(load_claims(), numbers)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", markdown(title, ours, paper, verdicts))
    write_text(folder / "table.csv", render.csv_text(ours))
    write_text(folder / "index.html", page(title, numbers, ours, paper, verdicts))
    return ours, paper, verdicts


def markdown(title: str, ours: Table, paper: Table, verdicts: Sequence[Verdict]) -> str:
    """Our table, the paper's and the claims as one Markdown text."""
    parts = [render.markdown_table(ours), render.markdown_table(paper)]
    return "\n".join([f"## {title}", "", *parts, render.markdown_claims(verdicts)])


def show(shown: tuple[Table, Table, Sequence[Verdict]], folder: Path) -> None:
    """Print to the terminal, or as Markdown where there is none."""
    from rich.console import Console

    ours, paper, verdicts = shown
    console = Console()
    if console.is_terminal:
        for shown_table in (ours, paper):
            console.print(*render.rich_tables(shown_table, console.width))
            console.print(shown_table.caption, style="dim")
        console.print(render.rich_claims(verdicts))
        for note in ours.notes:
            console.print(f"- {note}", style="dim", highlight=False)
    else:
        console.file.write(markdown("Table", ours, paper, verdicts))
    console.print(f"\nPage with figures: {folder / 'index.html'}", soft_wrap=True)
