"""Intervals over prompts and trends over frames, for the scores of one set of clips.

Differences between arms that share prompts and seeds are the table's: `sweeps/evidence.py`.

Convention: `values` is one number per clip [N]; the resampled unit is the clip (its prompt), never
    the frame.
"""

from collections.abc import Callable

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 1000


def resample(n: int, resamples: int, seed: int) -> np.ndarray:
    """Bootstrap indices, int64 [resamples, n]: row r says which clips make up resample r."""
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


def spread_interval(estimate: float, resampled: np.ndarray) -> tuple[float, float]:
    """Normal interval around `estimate` with the standard deviation of bootstrap estimates.

    For set-wise metrics (Frechet distance, recall) whose bootstrap is biased, because a resample
    holds only 63% distinct clips: the spread is still usable, the centre is not. None of these
    metrics is negative.
    """
    half = stats.norm.ppf((1 + LEVEL) / 2) * float(np.std(resampled, ddof=1))
    return max(estimate - half, 0.0), estimate + half


def trend(curve: np.ndarray) -> dict[str, float]:
    """Theil-Sen slope per frame of a curve over frame indices [T], its 95% interval, and Kendall's
    tau (Sen 1968).
    """
    curve = np.asarray(curve, np.float64)
    index = np.arange(len(curve))
    slope, _, low, high = stats.theilslopes(curve, index, LEVEL)
    tau = stats.kendalltau(index, curve).statistic
    return {
        "slope": float(slope),
        "low": float(low),
        "high": float(high),
        "tau": float(np.nan_to_num(tau)),
    }


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        raise ValueError(
            "no finite value to take statistics of: the metric applies to none of the clips"
        )
    return values
