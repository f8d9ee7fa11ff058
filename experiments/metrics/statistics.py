"""Intervals over prompts and trends over frames, for the scores of one set of clips.

For paired differences between methods see `sweeps/report/intervals.py`.

Convention: `values` is one number per clip [N]; the resampled unit is the clip (its prompt), never
    the frame.
"""

from collections.abc import Callable

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 1000


def resample(n: int, resamples: int, seed: int) -> np.ndarray:
    """Bootstrap indices, int64 [resamples, n]: row r holds the clips of resample r."""
    return np.random.default_rng(seed).integers(0, n, size=(resamples, n))


def resample_weights(n: int, resamples: int, seed: int) -> np.ndarray:
    """The same resamples as counts, float64 [resamples, n]: how often each clip was drawn (rows sum
    to n).
    """
    drawn = resample(n, resamples, seed)
    return np.stack([np.bincount(row, minlength=n) for row in drawn]).astype(np.float64)


def bootstrap_interval(
    values: np.ndarray,
    seed: int,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of a statistic of per-clip values; NaN values are
    left out.

    Args:
        values: float [N]; NaN marks clips the metric does not apply to.
        statistic: maps [R, N] to [R]; the mean when None.
    """
    values = _finite(values)
    draws = values[resample(len(values), resamples, seed)]
    estimates = draws.mean(axis=1) if statistic is None else statistic(draws)
    low, high = np.quantile(estimates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def spread_interval(
    estimate: float, resampled: np.ndarray, least: float = 0.0
) -> tuple[float, float]:
    """Normal interval around `estimate` with the standard deviation of bootstrap estimates.

    For set-wise metrics (Frechet distance, recall) whose bootstrap is biased, because a resample
    holds only 63% distinct clips: the spread is usable, the centre is not. The interval does
    not go below `least`: most of these metrics are never negative.
    """
    half = stats.norm.ppf((1 + LEVEL) / 2) * float(np.std(resampled, ddof=1))
    return max(estimate - half, least), estimate + half


def slope(curves: np.ndarray) -> np.ndarray:
    """Theil-Sen slope per frame of curves over frame indices, [..., T] -> [...]: the median slope
    between any two frames (Sen 1968).
    """
    curves = np.asarray(curves, np.float64)
    first, second = np.triu_indices(curves.shape[-1], 1)
    return np.median((curves[..., second] - curves[..., first]) / (second - first), axis=-1)


def kendall(curve: np.ndarray) -> float:
    """Kendall's tau of a curve [T] and its frame indices: 1 rises always; 0 for a constant."""
    return float(np.nan_to_num(stats.kendalltau(np.arange(len(curve)), curve).statistic))


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        raise ValueError(
            "no finite value to take statistics of: the metric applies to none of the clips"
        )
    return values
