"""Differences between cells with the uncertainty they deserve: the statistics of sweeps.

A question is a weighted sum of numbers, for example causal CD less causal ODE, both at 2 steps. The
answer is an `Estimate`, by the first of these procedures that the data allow:

1. two seeds or more, and something that depends on training: the sum is formed within each seed
   (the seed pairs the arms: same data order, prompts and noise), then Student's t over the seeds.
   Only this interval contains the variation between trainings. A number that all seeds share (a
   fact of a law) keeps its own interval, which is added in quadrature.
2. one run each and per-clip values whose mean is the number: the sum is formed for each prompt,
   then a percentile bootstrap over prompts (1,000 resamples, fixed seed).
3. one run each and own intervals: half-widths add in quadrature, as if the numbers were
   independent (they share prompts, so this is rather too wide than too narrow).
4. one training and no interval: the value alone; it decides nothing.

Exact are costs of one seed, the numbers of a printed table, and facts without an interval: closed
forms, and members of curves and extra numbers, whose Monte Carlo error was not estimated.
All intervals are two-sided at 95% and not corrected for the number of questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np

from sweeps.report.frame import Frame, Value
from sweeps.report.layout import Column, Layout

Term = tuple[float, str]
"""A weight and the address of a number."""
RESAMPLES = 1000
NOT_RUN = "not run"


@dataclass(frozen=True)
class Estimate:
    """A number with its interval. Without an interval (`low` is None) it decides nothing.

    `seeds` is the number of trainings behind it; 0 for quantities independent of training.
    """

    value: float
    low: float | None
    high: float | None
    method: str
    seeds: int = 1

    def scaled(self, factor: float) -> Estimate:
        """This estimate times a factor; a negative one swaps the ends."""
        ends = [None if end is None else end * factor for end in (self.low, self.high)]
        low, high = ends if factor >= 0 else ends[::-1]
        return Estimate(self.value * factor, low, high, self.method, self.seeds)

    def shifted(self, amount: float) -> Estimate:
        """This estimate plus a constant."""
        low, high = (None if end is None else end + amount for end in (self.low, self.high))
        return Estimate(self.value + amount, low, high, self.method, self.seeds)


def shown(margin: Estimate | None, column: Column | None = None, absent: str = NOT_RUN) -> str:
    """A number as printed in its column, else in three digits, with half of its interval."""
    if margin is None:
        return absent
    half = None if margin.low is None or margin.high == margin.low else margin.high - margin.low
    if column:
        return column.text(margin.value) + (f" ± {column.text(half / 2)}" if half else "")
    return number(margin.value) + (f" ± {number(half / 2, 2)}" if half else "")


def number(value: float, digits: int = 3) -> str:
    """In so many significant digits, tiny ones as powers of ten."""
    if value and abs(value) < 5e-5:
        return f"{value:.0e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


class Numbers(Protocol):
    """Numbers that claims are evaluated on: our results, or a printed table."""

    layout: Layout

    def estimate(self, terms: Sequence[Term]) -> Estimate | None:
        """The weighted sum with its interval; None when one of the numbers is missing."""

    def name(self, address: str) -> tuple[str, str]:
        """Name of an address: its cell and its quantity."""


def exact(value: float) -> Estimate:
    """A number without uncertainty."""
    return Estimate(value, value, value, "exact")


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95% interval of the mean of two values or more."""
    from scipy.special import stdtrit

    half = stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """The mean of one value per seed, two or more, with Student's interval."""
    return Estimate(float(np.mean(values)), *t_interval(values), "t over seeds", len(values))


@lru_cache(maxsize=8)
def _resampling_weights(n: int) -> np.ndarray:
    rng = np.random.default_rng(20250)
    return rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n


def over_prompts(values: np.ndarray) -> tuple[float, float]:
    """Percentile 95% interval of the mean of `values` [n] over resampled prompts."""
    low, high = np.quantile(_resampling_weights(len(values)) @ values, [0.025, 0.975])
    return float(low), float(high)


class FrameNumbers:
    """The results of a sweep as `Numbers`."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.layout = frame, frame.layout

    def estimate(self, terms: Sequence[Term]) -> Estimate | None:
        """The weighted sum with its interval, by the procedure in the module's docstring."""
        each = [(weight, self.frame.values(address)) for weight, address in terms]
        seeds = [s for s in self.frame.seeds if all(s in values for _, values in each)]
        if not seeds:
            return None
        sums = [float(sum(weight * values[s].value for weight, values in each)) for s in seeds]
        trained = [self.frame.place(a.rpartition("/")[0]).trained for _, a in terms]
        first = [(weight, values[seeds[0]]) for weight, values in each]
        if any(trained) and len(seeds) > 1:
            facts = [term for term, moves in zip(first, trained, strict=True) if not moves]
            return _widened(mean_over_seeds(sums), facts)
        return replace(_of_one_run(sums[0], first), seeds=int(any(trained)))

    def reference(self, address: str) -> Estimate | None:
        """A number outside the ranking: the mean of its distinct runs, of a single run its own
        interval.
        """
        found = {v.run.folder: v for v in self.frame.values(address).values() if v.run}
        values = list(found.values())
        if len(values) > 1:
            return mean_over_seeds([value.value for value in values])
        return _combined(values[0].value, [(1.0, values[0])]) if values else None

    def order(self, coarse: str, fine: str, times: float) -> Estimate | None:
        """The p of an error O(dt^p) that falls from `coarse` to `fine` when `times` as many
        intervals are taken, formed within each seed; None without numbers.
        """
        errors = [self.frame.values(address) for address in (coarse, fine)]
        orders = [
            math.log(errors[0][seed].value / errors[1][seed].value) / math.log(times)
            for seed in self.frame.seeds
            if all(seed in known for known in errors)
        ]
        if len(orders) > 1:
            return mean_over_seeds(orders)
        return Estimate(orders[0], None, None, "one training") if orders else None

    def name(self, address: str) -> tuple[str, str]:
        """The cell in the layout's words, and the heading of the column, curve or metric."""
        where, _, asked = address.rpartition("/")
        place = self.frame.place(where)
        if place is None:
            return where, quantity(self.layout, asked)
        last = self.layout.blocks
        labels = sorted(place.labels.items(), key=lambda item: item[0] == last)
        words = [self.layout.name(label, value) for label, value in labels]
        run = self.layout.runs.get(place.name, "")
        return ", ".join([*words, *([run] if run else [])]), quantity(self.layout, asked)


def quantity(layout: Layout, asked: str) -> str:
    """What a column, curve or metric is called."""
    id, at, part = asked.partition("@")
    parts = {"early": ", first frames", "late": ", last frames"}
    if found := layout.columns.get(id) or layout.curves.get(id):
        return found.heading + parts.get(part, at + part)
    return asked.partition(".")[2] or asked


def _of_one_run(total: float, terms: Sequence[tuple[float, Value]]) -> Estimate:
    if all(value.exact for _, value in terms):
        return exact(total)
    return _paired(total, terms) or _combined(total, terms)


def _paired(total: float, terms: Sequence[tuple[float, Value]]) -> Estimate | None:
    """The sum formed for each prompt; None unless all terms have clips of the same prompts."""
    if any(value.clips is None for _, value in terms):
        return None
    keys = [value.run.per_clip["key"] for _, value in terms]
    if not all(np.array_equal(keys[0], other) for other in keys[1:]):
        return None
    paired = sum(weight * value.clips for weight, value in terms)
    paired = paired[np.isfinite(paired)]  # prompts to which the metric applies in all cells
    if len(paired) < 2:
        return None
    low, high = over_prompts(paired)
    offset = total - float(paired.mean())
    return Estimate(total, low + offset, high + offset, "bootstrap over prompts")


def _combined(total: float, terms: Sequence[tuple[float, Value]]) -> Estimate:
    if any(value.low is None for _, value in terms):
        return Estimate(total, None, None, "one seed, no interval")
    below, above = _reaches(terms)
    method = "intervals combined" if len(terms) > 1 else "the score's own interval"
    return Estimate(total, total - below, total + above, method)


def _widened(estimate: Estimate, facts: Sequence[tuple[float, Value]]) -> Estimate:
    """An interval over seeds with those of the facts in the sum added in quadrature."""
    below, above = _reaches(facts)
    if below == above == 0:
        return estimate
    low = estimate.value - math.hypot(estimate.value - estimate.low, below)
    high = estimate.value + math.hypot(estimate.high - estimate.value, above)
    return replace(estimate, low=low, high=high, method=f"{estimate.method} and Monte Carlo")


def _reaches(terms: Sequence[tuple[float, Value]]) -> tuple[float, float]:
    """How far below and above a sum its terms' own intervals reach, in quadrature."""
    below, above = (
        math.sqrt(sum(_reach(weight, value, side) ** 2 for weight, value in terms))
        for side in (-1, 1)
    )
    return below, above


def _reach(weight: float, value: Value, side: int) -> float:
    end = value.high if side * weight > 0 else value.low
    return abs(weight) * abs(end - value.value)


class PaperNumbers:
    """A printed table as `Numbers`: our columns mapped to the paper's, each number exact."""

    def __init__(self, paper: Mapping, layout: Layout) -> None:
        self.paper, self.layout = paper, layout

    def estimate(self, terms: Sequence[Term]) -> Estimate | None:
        """The weighted sum of printed numbers; None for what the paper does not print."""
        printed = [self.printed(address) for _, address in terms]
        if None in printed:
            return None
        return exact(sum(w * p for (w, _), p in zip(terms, printed, strict=True)))

    def printed(self, address: str) -> float | None:
        """One printed number, by an address as `causal_cd-2/stage3/total`: row, block, column."""
        cell, run, asked = address.split("/")
        row, block = cell.rpartition("-")[::2]
        column = self.paper["columns_of"].get(asked, asked)
        blocks = {str(at): rows for at, rows in self.paper["blocks"].items()}
        values = blocks.get(block, {}).get(row)
        known = values and run == self.layout.run and column in self.paper["order"]
        return values[self.paper["order"].index(column)] if known else None

    def name(self, address: str) -> tuple[str, str]:
        """The cell's part of the address, and the heading of its column."""
        cell, _, asked = address.split("/")
        return cell, quantity(self.layout, asked)
