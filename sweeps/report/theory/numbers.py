"""Numbers of the theory sweeps by address, with the interval that they deserve.

An address is ``world/cell/run/metric``, for example ``switching/causal_cd-1/before/law.energy``:

- world: a sweep without its ``theory_``;
- cell: the values of its axes in their order, joined by "-";
- run: what the cell calls it;
- metric: an id of scores.jsonl; ``id:name`` is one of its extra numbers, ``id.name@3`` a member of
  a curve, ``id.name@-1`` its last.

What depends on training has one value a seed and Student's interval over them. A fact of the law is
one run for all seeds and keeps its own interval, which is Monte Carlo's; beside a trained number it
is added in quadrature. A fact without an interval counts as exact. That is so of closed forms; of
sizes of bugs, extra numbers and members of curves it means that their Monte Carlo error, over some
hundred clips, was not estimated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sweeps.plan.graph import Sweep
from sweeps.report.intervals import Margin, exact, mean_over_seeds
from sweeps.report.results import Score, ScoreRun, read_score_run

PREFIX = "theory_"
INITS = {
    "self_forcing_ode": "SF-ODE",
    "ar_diffusion": "AR diffusion",
    "causal_ode": "causal ODE",
    "causal_dmd": "causal DMD",
    "causal_cd": "causal CD",
}


@dataclass(frozen=True)
class Value:
    """A number of one run; `low` and `high` are its own interval, None where it has none."""

    run: Path
    value: float
    low: float | None = None
    high: float | None = None


class TheoryNumbers:
    """The score runs of some sweeps, as far as they are done.

    Args:
        sweeps: planned, all with the same seeds.
        runs_dir: where their runs live.
    """

    def __init__(self, sweeps: Sequence[Sweep], runs_dir: Path) -> None:
        self.runs: dict[str, dict[int, ScoreRun | None]] = {}
        self.seeds = sweeps[0].seeds
        self.trained: set[str] = set()
        read: dict[str, ScoreRun | None] = {}
        for sweep in sweeps:
            world = sweep.name.removeprefix(PREFIX)
            for cell in sweep.cells:
                labels = [_text(v) for name, v in cell.labels.items() if name != "seed"]
                for name, run in cell.runs.items():
                    if run.name not in read:
                        read[run.name] = read_score_run(runs_dir / run.name)
                    place = f"{world}/{'-'.join(labels)}/{name}"
                    self.runs.setdefault(place, {})[cell.labels["seed"]] = read[run.name]
                    if any(need.verb == "fit" for need in run.closure().values()):
                        self.trained.add(place)

    @property
    def done(self) -> tuple[int, int]:
        """How many score runs have been read, and how many there are."""
        runs = [run for seeds in self.runs.values() for run in seeds.values()]
        return sum(run is not None for run in runs), len(runs)

    def values(self, address: str) -> dict[int, Value]:
        """The number of each seed that has it.

        Raises:
            ValueError: the sweeps have no such cell or run; a metric that was not measured is
                merely absent.
        """
        place, _, metric = address.rpartition("/")
        if place not in self.runs:
            raise ValueError(f"{address!r}: no such cell among {', '.join(sorted(self.runs))}")
        found = {seed: _value(run, metric) for seed, run in self.runs[place].items() if run}
        return {seed: value for seed, value in found.items() if value is not None}

    def margin(self, address: str) -> Margin | None:
        """The number with its interval; None when no seed has it."""
        return self.difference([(1.0, address)])

    def difference(self, terms: Sequence[tuple[float, str]]) -> Margin | None:
        """A weighted sum with its interval, formed within each seed; None without numbers."""
        each = [(weight, self.values(address)) for weight, address in terms]
        seeds = [s for s in self.seeds if all(s in values for _, values in each)]
        if not seeds:
            return None
        sums = [sum(weight * values[s].value for weight, values in each) for s in seeds]
        first = [(weight, values[seeds[0]]) for weight, values in each]
        trained = [address.rpartition("/")[0] in self.trained for _, address in terms]
        if any(trained) and len(seeds) > 1:
            facts = [term for term, moves in zip(first, trained, strict=True) if not moves]
            return _widened(mean_over_seeds(sums), facts)
        return replace(_own(sums[0], first), seeds=int(any(trained)))

    def order(self, coarse: str, fine: str, times: float) -> Margin | None:
        """The p of an error O(dt^p) that falls from `coarse` to `fine` when `times` as many
        intervals are taken, formed within each seed; None without numbers.
        """
        errors = [self.values(address) for address in (coarse, fine)]
        orders = [
            math.log(errors[0][seed].value / errors[1][seed].value) / math.log(times)
            for seed in self.seeds
            if all(seed in known for known in errors)
        ]
        if len(orders) > 1:
            return mean_over_seeds(orders)
        return Margin(orders[0], None, None, "one training") if orders else None

    def curve(self, address: str) -> np.ndarray | None:
        """A curve of every seed that has it, float [seeds, points]; a fact's is read once."""
        place, _, name = address.rpartition("/")
        runs = {run.folder: run for run in self.runs.get(place, {}).values() if run}
        found = [run.curves[name] for run in runs.values() if name in run.curves]
        return np.array(found, float) if found else None


def _own(total: float, terms: Sequence[tuple[float, Value]]) -> Margin:
    """A sum of single runs: their own intervals, added in quadrature as if independent."""
    if all(value.low is None for _, value in terms):
        return exact(total)
    below, above = _reaches(terms)
    return Margin(total, total - below, total + above, "the scores' own interval")


def _widened(margin: Margin, facts: Sequence[tuple[float, Value]]) -> Margin:
    """An interval over seeds with those of the facts in the sum added in quadrature."""
    below, above = _reaches(facts)
    if below == above == 0:
        return margin
    low = margin.value - math.hypot(margin.value - margin.low, below)
    high = margin.value + math.hypot(margin.high - margin.value, above)
    return replace(margin, low=low, high=high, method=f"{margin.method} and Monte Carlo")


def _reaches(terms: Sequence[tuple[float, Value]]) -> tuple[float, float]:
    """How far below and above a sum its terms' own intervals reach, in quadrature."""
    known = [(weight, value) for weight, value in terms if value.low is not None]
    below, above = (
        math.sqrt(sum(_reach(weight, value, side) ** 2 for weight, value in known))
        for side in (-1, 1)
    )
    return below, above


def _reach(weight: float, value: Value, side: int) -> float:
    end = value.high if side * weight > 0 else value.low
    return abs(weight) * abs(end - value.value)


def _value(run: ScoreRun, metric: str) -> Value | None:
    name, _, index = metric.partition("@")
    if index:
        curve = run.curves.get(name)
        return None if curve is None else Value(run.folder, curve[int(index)])
    name, _, extra = metric.partition(":")
    score: Score | None = run.scores.get(name)
    if score is None:
        return None
    if extra:
        return Value(run.folder, score.extra[extra]) if extra in score.extra else None
    return Value(run.folder, score.value, score.low, score.high)


def _text(label: object) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)


def shown(margin: Margin | None) -> str:
    """A number as printed, with half of its interval; "not run" without one."""
    if margin is None:
        return "not run"
    if margin.low is None or margin.high == margin.low:
        return number(margin.value)
    return f"{number(margin.value)} ± {number((margin.high - margin.low) / 2, 2)}"


def number(value: float, digits: int = 3) -> str:
    """In so many significant digits, tiny ones as powers of ten."""
    if value and abs(value) < 5e-5:
        return f"{value:.0e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"
