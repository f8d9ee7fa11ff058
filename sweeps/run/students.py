"""``students``: the runs that trained the students of a sweep's cells. Starts nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.runs.config import nearest
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import Run
from sweeps.plan.graph import Cell, Sweep

ROLES = ("samples", "student")
"""The way from a score to what it judges."""


def student_of(run: Run) -> Run | None:
    """The fit behind a score, a sample or a fit; None: it judges no student."""
    while run.verb != "fit":
        role = next((role for role in ROLES if role in run.needs), None)
        if role is None:
            return None
        run = run.needs[role]
    return run


def chosen_cells(sweep: Sweep, labels: Sequence[str]) -> list[Cell]:
    """The cells that have all of these labels, ``axis=value``.

    Raises:
        ValueError: no such axis, or no cell left that has the value.
    """
    cells = sweep.cells
    for label in labels:
        axis, _, value = label.partition("=")
        axes = dict.fromkeys(name for cell in sweep.cells for name in cell.labels)
        if axis not in axes:
            raise ValueError(
                f"--cell {label}: no such axis{nearest(axis, axes)} (there are: {', '.join(axes)})"
            )
        there = dict.fromkeys(str(cell.labels[axis]) for cell in cells if axis in cell.labels)
        if value not in there:
            raise ValueError(f"--cell {label}: no cell left has it (there are: {', '.join(there)})")
        cells = [cell for cell in cells if str(cell.labels.get(axis)) == value]
    return cells


def print_students(sweep: Sweep, labels: Sequence[str], runs_dir: Path, paths: bool) -> None:
    """Each cell's students and where they stand.

    Args:
        labels: of the cells that are meant.
        paths: print nothing but folders, one a line, for other commands.

    Raises:
        FileNotFoundError: with ``paths``: none is done.
        ValueError: no cell has these labels.
    """
    found = list(_students(chosen_cells(sweep, labels)))
    done = {run.name: RunFolder(runs_dir / run.name).state() for _, _, run in found}
    if paths:
        ready = [name for name in done if done[name] == "done"]
        if not ready:
            raise FileNotFoundError(
                f"none of these {len(done)} students of {sweep.name} is done in {runs_dir}; run:"
                f" python -m sweeps run {sweep.name} --scale {sweep.scale} --runs {runs_dir}"
            )
        print(*(runs_dir / name for name in ready), sep="\n")
        return
    axes = list(dict.fromkeys(name for cell, _, _ in found for name in cell.labels))
    table = Table(*axes, "run", "student", "state", box=None, header_style="bold")
    for cell, name, run in found:
        texts = [_text(cell.labels.get(axis)) for axis in axes]
        table.add_row(*texts, escape(name), run.name, done[run.name])
    Console(highlight=False, width=200).print(table)


def _students(cells: Sequence[Cell]) -> Iterator[tuple[Cell, str, Run]]:
    for cell in cells:
        for name, run in cell.runs.items():
            if student := student_of(run):
                yield cell, name, student


def _text(value: Any) -> str:
    return "" if value is None else escape(str(value))
