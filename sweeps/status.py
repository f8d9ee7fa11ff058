"""``plan`` and ``status``: the runs of a sweep as their folders show them. Starts nothing."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.folder import STATES, RunFolder
from sweeps.costs import Costs, duration, forecast, remaining
from sweeps.executors.devices import cores
from sweeps.graph import Sweep

_COLOURS = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "yellow"}


def print_plan(sweep: Sweep, runs_dir: Path) -> None:
    """Every run in order, with its state and expected cost."""
    costs = Costs(runs_dir)
    states = {name: RunFolder(runs_dir / name).state() for name in sweep.runs}
    table = Table("run", "verb", "state", "cost", "needs", box=None, header_style="bold")
    for name, run in sweep.runs.items():
        needs = ", ".join(sorted(need.name for need in run.needs.values()))
        cost = "" if states[name] == "done" else duration(costs.estimate(run))
        table.add_row(name, run.verb, _coloured(states[name]), cost, needs)
    left = [run for name, run in sweep.runs.items() if states[name] != "done"]
    unshared = sum(len(run.closure()) for cell in sweep.cells for run in cell.runs.values())
    seconds, known = remaining(left, {}, sweep.runs, costs, cores())
    unknown = sum(costs.estimate(run) is None for run in left)
    console = _console()
    console.print(table)
    console.print(
        f"{len(sweep.cells)} cells, {len(sweep.runs)} runs ({unshared} if nothing were shared):"
        f" {len(sweep.runs) - len(left)} done, {len(left)} to run"
    )
    if left:
        more = f" (the cost of {unknown} runs is unknown)" if unknown else ""
        console.print(f"on {cores()} workers: {forecast(seconds, known)}{more}")


def print_status(sweep: Sweep, runs_dir: Path) -> None:
    """Every run with its state, the time it has taken, and why it failed."""
    table = Table("run", "state", "time", "", box=None, header_style="bold")
    counts = dict.fromkeys(STATES, 0)
    for name in sweep.runs:
        folder = RunFolder(runs_dir / name)
        state = folder.state()
        counts[state] += 1
        wall = folder.read_record().get("wall_s")
        why = folder.failure().strip().splitlines()[-1:] if state == "failed" else []
        table.add_row(name, _coloured(state), duration(wall) if wall else "", *why)
    console = _console()
    console.print(table)
    console.print(", ".join(f"{count} {state}" for state, count in counts.items() if count))


def _console() -> Console:
    console = Console(highlight=False, markup=True)
    return console if console.is_terminal else Console(width=200, highlight=False)


def _coloured(state: str) -> str:
    colour = _COLOURS.get(state)
    return f"[{colour}]{state}[/]" if colour else state
