"""``plan`` and ``status``: the runs of a sweep as their folders show them. Starts nothing."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from experiments.launch.ranks.topology import wanted
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import Run
from experiments.runs.unchanged import changed_result
from sweeps.executors.devices import cores
from sweeps.plan.costs import Costs, devices_of, duration, forecast, remaining
from sweeps.plan.graph import Sweep
from sweeps.run.state import STATES, State, states

WATCH_EVERY_S = 2.0
LISTED = 500  # up to so many runs a plan lists each; more are listed by recipe
_COLOURS = {
    "done": "green",
    "running": "cyan",
    "queued": "blue",
    "failed": "red",
    "cancelled": "yellow",
    "interrupted": "yellow",
}


def print_plan(sweep: Sweep, runs_dir: Path) -> None:
    """Every run in order, with its state and expected cost; of very many, every recipe."""
    costs = Costs(runs_dir)
    states = {name: RunFolder(runs_dir / name).state() for name in sweep.runs}
    planned = _planned if len(sweep.runs) <= LISTED else _planned_by_recipe
    table = planned(sweep, states, costs)
    left = [run for name, run in sweep.runs.items() if states[name] != "done"]
    unshared = sum(len(run.closure()) for cell in sweep.cells for run in cell.runs.values())
    seconds, known = remaining(left, {}, sweep.runs, costs, cores())
    unknown = sum(costs.estimate(run) is None for run in left)
    hours = sum(costs.device_s(run) or 0.0 for run in left) / 3600
    console = _console()
    console.print(table)
    console.print(
        f"{len(sweep.cells)} cells, {len(sweep.runs)} runs ({unshared} if nothing were shared):"
        f" {len(sweep.runs) - len(left)} done, {len(left)} to run"
    )
    for name in sweep.runs:
        if changed := changed_result(RunFolder(runs_dir / name)):
            console.print(f"[red]changed[/] {escape(changed)}", soft_wrap=True)
    if left:
        spread = max(map(devices_of, left))
        more = f" (the cost of {unknown} runs is unknown)" if unknown else ""
        console.print(f"on {cores()} workers: {forecast(seconds, known)}{more}")
        console.print(f"{_hours(hours)} device-hours, on up to {spread} devices a run")


def _planned(sweep: Sweep, states: Mapping[str, str], costs: Costs) -> Table:
    names = ("run", "verb", "state", "devices", "time", "device-h", "needs")
    table = Table(*names, box=None, header_style="bold")
    for name, run in sweep.runs.items():
        needs = ", ".join(sorted(need.name for need in run.needs.values()))
        cost = ("", "", "") if states[name] == "done" else _cost([run], costs)
        table.add_row(name, run.verb, _coloured(states[name]), *cost, needs)
    return table


def _planned_by_recipe(sweep: Sweep, states: Mapping[str, str], costs: Costs) -> Table:
    names = ("recipe", "verb", "runs", "states", "devices", "time", "device-h")
    table = Table(*names, box=None, header_style="bold")
    recipes: dict[str, list[Run]] = defaultdict(list)
    for run in sweep.runs.values():
        recipes[run.recipe["recipe"]].append(run)
    for recipe, runs in recipes.items():
        counts = Counter(states[run.name] for run in runs)
        shown = [f"{counts[state]} {_coloured(state)}" for state in STATES if counts[state]]
        cost = _cost([run for run in runs if states[run.name] != "done"], costs)
        table.add_row(recipe, runs[0].verb, f"{len(runs)}", ", ".join(shown), *cost)
    return table


def _cost(runs: Sequence[Run], costs: Costs) -> tuple[str, str, str]:
    """Devices of one run, and wall time and device-hours of these runs one after the other."""
    spread = sorted({"x".join(map(str, wanted(run.recipe))) for run in runs})
    wall, devices = [costs.estimate(run) for run in runs], [costs.device_s(run) for run in runs]
    if None in wall:
        return ", ".join(spread), duration(None), "unknown"
    return ", ".join(spread), duration(sum(wall)), _hours(sum(devices) / 3600)


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2f}"


def print_status(sweep: Sweep, runs_dir: Path, choice: str) -> None:
    """Every run with its state, and how to learn more about those that failed.

    ``choice`` are the command-line arguments that select this sweep.
    """
    console, found = _console(), states(sweep.runs, runs_dir)
    console.print(_table(found), _summary(found))
    for each in found:
        if each.state == "failed":
            console.print(f"[red]{each.name}[/] {escape(each.why)}")
            command = f"  python -m sweeps status {choice} --why {each.name}"
            console.print(escape(command), soft_wrap=True)


def watch(sweep: Sweep, runs_dir: Path) -> None:
    """Refresh the status, active runs first, until all runs are done or Ctrl-C."""
    order = ("running", "queued", "failed", "cancelled", "interrupted", "new", "done")
    with Live(console=_console(), auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            found = states(sweep.runs, runs_dir)
            rows = sorted(found, key=lambda each: order.index(each.state))
            live.update(Group(_summary(found), _table(rows)), refresh=True)
            if all(each.state == "done" for each in found):
                return
            time.sleep(WATCH_EVERY_S)


def _table(found: Sequence[State]) -> Table:
    names = ("run", "state", "progress", "time", "left", "job", "devices", "device-h", "log")
    table = Table(*names, box=None, header_style="bold")
    for each in found:
        known = each.total and each.state != "done"
        progress = f"{each.done}/{each.total} {each.note}" if known else each.note
        table.add_row(
            each.name,
            _coloured(each.state),
            escape(progress),
            duration(each.spent_s) if each.spent_s else "",
            "" if each.state == "done" else duration(each.left_s),
            each.job,
            each.devices,
            _hours(each.device_s / 3600) if each.device_s else "",
            escape(_shown(each.log)) if each.log else "",
        )
    return table


def _summary(found: Sequence[State]) -> str:
    counts = {state: sum(each.state == state for each in found) for state in STATES}
    spent = sum(each.device_s for each in found) / 3600
    text = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    known = all(each.device_left_s is not None for each in found)
    left = sum(each.device_left_s or 0.0 for each in found) / 3600
    more = f"{'' if known else 'at least '}{_hours(left)} left"
    return f"{text}; {_hours(spent)} device-hours so far, {more}"


def _shown(path: Path) -> str:
    """The shortest form of a path, relative to the working directory if possible."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _console() -> Console:
    console = Console(highlight=False, markup=True)
    return console if console.is_terminal else Console(width=200, highlight=False)


def _coloured(state: str) -> str:
    colour = _COLOURS.get(state)
    return f"[{colour}]{state}[/]" if colour else state
