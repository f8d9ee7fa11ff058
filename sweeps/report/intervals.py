"""Differences between cells with the uncertainty they deserve: where the sweeps do statistics.

A question is a weighted sum of cells, for example causal CD less causal ODE, both at 2 steps, of a
quantity. The answer is a `Margin`, by the first of these procedures that the data allow:

1. two seeds or more: the sum is formed within each seed (the seed pairs the arms: same data
   order, prompts and noise), then Student's t over the seeds. Only this interval contains the
   variation between trainings.
2. one seed and per-clip values whose mean is the score: the sum is formed for each prompt, then a
   percentile bootstrap over prompts (1,000 resamples, fixed seed).
3. one seed and each score's own interval: half-widths add in quadrature, as if the scores were
   independent (they share prompts, so this is rather too wide than too narrow).
4. one seed and no interval: the value alone; it decides nothing.

Costs of one seed, and the numbers of a printed table, are exact: measured or printed once.
All intervals are two-sided at 95% and not corrected for the number of questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from sweeps.report.results import Cell, Results, ScoreRun

Row = tuple[str, int]  # init, few_steps
RESAMPLES = 1000


@dataclass(frozen=True)
class Quantity:
    """What is compared: a column, or a curve (with a part of it), of the samples of one stage."""

    name: str
    stage: int = 3
    part: str = ""  # curves only: "early" and "late" are the first and last quarter of the frames


@dataclass(frozen=True)
class Term:
    """One cell's share in a question."""

    quantity: Quantity
    row: Row
    weight: float


@dataclass(frozen=True)
class Margin:
    """A number with its interval. Without an interval (`low` is None) it decides nothing.

    `seeds` is of how many trainings it knows; 0 for what no training can change.
    """

    value: float
    low: float | None
    high: float | None
    method: str
    seeds: int = 1

    def scaled(self, factor: float) -> Margin:
        """This margin times a factor; a negative one swaps the ends."""
        ends = [None if end is None else end * factor for end in (self.low, self.high)]
        low, high = ends if factor >= 0 else ends[::-1]
        return Margin(self.value * factor, low, high, self.method, self.seeds)

    def shifted(self, amount: float) -> Margin:
        """This margin plus a constant."""
        low, high = (None if end is None else end + amount for end in (self.low, self.high))
        return Margin(self.value + amount, low, high, self.method, self.seeds)


def exact(value: float) -> Margin:
    """A number without uncertainty."""
    return Margin(value, value, value, "exact")


class Numbers(Protocol):
    """Anything that claims can be asked of: our results, or a printed table."""

    layout: Mapping

    def combine(self, terms: Sequence[Term]) -> Margin | None:
        """The weighted sum with its interval; None when one of the cells has no such number."""


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95% interval of the mean of two values or more."""
    from scipy.special import stdtrit

    half = stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def mean_over_seeds(values: Sequence[float]) -> Margin:
    """The mean of one value per seed, two or more, with Student's interval."""
    return Margin(float(np.mean(values)), *t_interval(values), "t over seeds", len(values))


@lru_cache(maxsize=8)
def _resampling_weights(n: int) -> np.ndarray:
    rng = np.random.default_rng(20250)
    return rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """Percentile 95% interval of the mean of `values` [n] over resampled prompts."""
    low, high = np.quantile(_resampling_weights(len(values)) @ values, [0.025, 0.975])
    return float(low), float(high)


class OurNumbers:
    """The results of a sweep as `Numbers`; `layout` is columns.yaml."""

    def __init__(self, results: Results, layout: Mapping) -> None:
        self.results, self.layout = results, layout
        self._entries = layout["columns"] | layout["curves"]

    def combine(self, terms: Sequence[Term]) -> Margin | None:
        """The weighted sum with its interval, by the procedure in the module's docstring."""
        by_seed = []
        for seed in self.results.seeds:
            cells = [self.results.cells.get((*term.row, seed)) for term in terms]
            values = [
                self.value(cell, term.quantity) if cell else None
                for cell, term in zip(cells, terms, strict=True)
            ]
            if None not in values:
                total = sum(t.weight * v for t, v in zip(terms, values, strict=True))
                by_seed.append((cells, float(total)))
        if not by_seed:
            return None
        sums = [total for _, total in by_seed]
        if len(sums) > 1:
            return mean_over_seeds(sums)
        return self._one_seed(by_seed[0][0], terms, sums[0])

    def value(self, cell: Cell, quantity: Quantity) -> float | None:
        """One cell's number; None when it was not measured."""
        entry = self._entries[quantity.name]
        if "cost" in entry:
            return getattr(cell.cost, entry["cost"]) if cell.cost else None
        run = _run(cell, quantity)
        if run is None:
            return None
        if quantity.name in self.layout["columns"]:
            score = run.scores.get(entry["metric"])
            return score.value if score else None
        curve = run.curves.get(entry["metric"])
        return float(np.mean(curve[_part(len(curve), quantity.part)])) if curve else None

    def _one_seed(self, cells: Sequence[Cell], terms: Sequence[Term], total: float) -> Margin:
        if all("cost" in self._entries[term.quantity.name] for term in terms):
            return exact(total)
        clips = [self._clips(c, term.quantity) for c, term in zip(cells, terms, strict=True)]
        if all(c is not None for c in clips) and _same_prompts(cells, terms):
            paired = sum(term.weight * c for c, term in zip(clips, terms, strict=True))
            paired = paired[np.isfinite(paired)]  # prompts to which the metric applies in all cells
            if len(paired) > 1:
                low, high = bootstrap_interval(paired)
                offset = total - float(paired.mean())
                return Margin(total, low + offset, high + offset, "bootstrap over prompts")
        ends = [self._ends(c, term) for c, term in zip(cells, terms, strict=True)]
        if any(end is None for end in ends):
            return Margin(total, None, None, "one seed, no interval")
        below, above = (math.sqrt(sum(end[side] ** 2 for end in ends)) for side in (0, 1))
        method = "intervals combined" if len(terms) > 1 else "the score's own interval"
        return Margin(total, total - below, total + above, method)

    def _ends(self, cell: Cell, term: Term) -> tuple[float, float] | None:
        """How far the weighted score's interval reaches below and above its value."""
        entry = self._entries[term.quantity.name]
        run = _run(cell, term.quantity)
        score = run.scores.get(entry["metric"]) if run else None
        if score is None or score.low is None or score.high is None:
            return None
        reach = (score.value - score.low, score.high - score.value)
        below, above = reach if term.weight >= 0 else reach[::-1]
        return below * abs(term.weight), above * abs(term.weight)

    def _clips(self, cell: Cell, quantity: Quantity) -> np.ndarray | None:
        """Values per clip, float64 [n], when their mean is the number itself; NaN: not applicable.

        A composite is not the mean of its clips; then they say nothing about its interval.
        """
        run, whole = _run(cell, quantity), self.value(cell, quantity)
        clips = run.per_clip.get(self._entries[quantity.name]["metric"]) if run else None
        if clips is None or whole is None:
            return None
        if clips.ndim == 2:
            clips = clips[:, _part(clips.shape[1], quantity.part)].mean(1)
        applies = np.isfinite(clips)
        if not applies.any() or abs(clips[applies].mean() - whole) > 1e-3 * max(1.0, abs(whole)):
            return None
        return clips.astype(np.float64)


def _run(cell: Cell, quantity: Quantity) -> ScoreRun | None:
    return cell.stage3 if quantity.stage == 3 else cell.stage2


def _same_prompts(cells: Sequence[Cell], terms: Sequence[Term]) -> bool:
    """Whether the clips of all terms answer the same prompts in the same order."""
    keys = [_run(c, t.quantity).per_clip["key"] for c, t in zip(cells, terms, strict=True)]
    return all(np.array_equal(keys[0], other) for other in keys[1:])


def _part(frames: int, part: str) -> slice:
    quarter = max(1, frames // 4)
    parts = {"early": slice(quarter), "late": slice(frames - quarter, frames), "": slice(None)}
    return parts[part]


class PaperNumbers:
    """The printed table as `Numbers`: our column names mapped to the paper's, each number exact."""

    def __init__(self, paper: Mapping, layout: Mapping) -> None:
        self.paper, self.layout = paper, layout

    def combine(self, terms: Sequence[Term]) -> Margin | None:
        """The weighted sum of printed numbers; None for what the paper does not print."""
        total = 0.0
        for term in terms:
            column = self.layout["columns"].get(term.quantity.name, {}).get("paper")
            printed = self.cell(term.row, column) if column else None
            if printed is None or term.quantity.stage != 3:
                return None
            total += term.weight * printed
        return exact(total)

    def cell(self, row: Row, column: str) -> float | None:
        """One printed number; None for a dash or a row that is not printed."""
        values = self.paper["blocks"].get(row[1], {}).get(row[0])
        return None if values is None else values[self.paper["order"].index(column)]
