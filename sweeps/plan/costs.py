"""Costs of runs: measured by earlier runs of the same recipe, else the scale's hint, else unknown.

What was measured is in proportion to the steps of a fit, or to what another verb counts.

Measured and hinted are device-seconds. Wall time follows from the launch that is set, as if a run
on twice the devices took half of it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import log, prod
from pathlib import Path
from statistics import median

from experiments.launch.ranks.topology import wanted
from experiments.runs.expected_cost import count_of
from experiments.runs.recipe import Run


class Costs:
    """Reads the records of all finished runs in a folder once."""

    def __init__(self, runs_dir: Path) -> None:
        found: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
        for done in runs_dir.glob("*/done.json"):
            try:
                record = json.loads((done.parent / "record.json").read_text(encoding="utf-8"))
                seconds = float(record["device_s"])
                count = int(record.get("progress", {}).get("total", 0))
                found[record["scale"], record["recipe"]].append((count, seconds))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # an unreadable record only loses an estimate
        self._measured = dict(found)

    def device_s(self, run: Run) -> float | None:
        """Expected seconds over all devices of a run, None if unknown."""
        measured = self._measured.get((run.scale, run.recipe["recipe"]))
        if not measured:
            return run.expected_s
        count = count_of(run.recipe)
        counted = [(each, seconds) for each, seconds in measured if each] if count else []
        if not counted:
            return median(seconds for _, seconds in measured)
        nearest = min((each for each, _ in counted), key=lambda each: abs(log(each / count)))
        return median(s for each, s in counted if each == nearest) * count / nearest

    def estimate(self, run: Run) -> float | None:
        """Expected seconds of wall time on the devices of ``launch``, None if unknown."""
        seconds = self.device_s(run)
        return None if seconds is None else seconds / devices_of(run)

    def learn(self, run: Run, wall_s: float) -> None:
        """Add the measured cost of a run."""
        self._measured[run.scale, run.recipe["recipe"]] = [
            (count_of(run.recipe), wall_s * devices_of(run))
        ]


def devices_of(run: Run) -> int:
    """Devices that a run uses, on all nodes together."""
    return prod(wanted(run.recipe))


def urgency(runs: Mapping[str, Run], costs: Costs) -> dict[str, float]:
    """Seconds from the start of each run to the end of all that follows it (its longest path).

    Starting the most urgent run first keeps the whole sweep short. An unknown cost counts as the
    median of the known ones.
    """
    known = [cost for run in runs.values() if (cost := costs.estimate(run)) is not None]
    typical = median(known) if known else 1.0
    after: dict[str, float] = defaultdict(float)
    total: dict[str, float] = {}
    for run in reversed(list(runs.values())):  # its dependants come before it
        cost = costs.estimate(run)
        total[run.name] = after[run.name] + (typical if cost is None else cost)
        for need in run.needs.values():
            after[need.name] = max(after[need.name], total[run.name])
    return total


def remaining(
    left: Iterable[Run],
    spent: Mapping[str, float],
    runs: Mapping[str, Run],
    costs: Costs,
    size: int,
) -> tuple[float, bool]:
    """(seconds until all of ``left`` is done on ``size`` workers, whether all costs are known).

    ``spent`` holds the elapsed seconds of active runs.
    """
    left = list(left)
    known = True
    work = 0.0
    for run in left:
        cost = costs.estimate(run)
        known &= cost is not None
        work += max((cost or 0.0) - spent.get(run.name, 0.0), 0.0)
    waited_for = {run.name for run in left}
    names = {name: run for name, run in runs.items() if name in waited_for}
    longest = urgency(names, costs) if known else {}
    path = max((longest[n] - spent.get(n, 0.0) for n in longest), default=0.0)
    return max(work / size, path, 0.0), known


def duration(seconds: float | None) -> str:
    """``75`` -> ``1:15``; None -> ``unknown``."""
    if seconds is None:
        return "unknown"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def forecast(seconds: float, known: bool) -> str:
    """Time left in words; costs may be partly or entirely unknown."""
    if known:
        return f"{duration(seconds)} left"
    return f"at least {duration(seconds)} left" if seconds else "time left unknown"
