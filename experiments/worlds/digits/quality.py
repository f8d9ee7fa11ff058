"""World Quality: VBench's seven quality dimensions with its weights, each in the world's own terms.

Every dimension is a value per clip, min-max normalised between a floor and a ceiling measured once
(`calibration.py`) and clipped there: looking cleaner than real data earns nothing, since frozen or
blurred clips do.

    World Quality = 100 * sum_d w_d * clip((x_d - floor_d) / (ceiling_d - floor_d), 0, 1) / sum_d
    w_d
"""

from collections.abc import Callable

import numpy as np

from experiments.metrics import motion
from experiments.metrics.registry import Measurement, NotApplicable, metric
from experiments.metrics.statistics import bootstrap_interval, resample_weights
from experiments.worlds.digits import appearance
from experiments.worlds.digits.context import View

QUALITY = "world.quality."
WEIGHTS = {  # VBench, scripts/constant.py
    "subject_consistency": 1.0,
    "background_consistency": 1.0,
    "temporal_flickering": 1.0,
    "motion_smoothness": 1.0,
    "dynamic_degree": 0.5,
    "realism": 1.0,  # replaces aesthetic quality
    "imaging": 1.0,
}


def imaging(view: View) -> np.ndarray:
    """Two-sided sharpness and two-sided background noise, relative to real clips, [N]."""
    sharp, noise = view.reference.appearance
    sharpness = appearance.nearness(view.sharpness, sharp).mean(axis=1)
    quiet = appearance.nearness(appearance.SEEN + view.noise, appearance.SEEN + noise).mean(axis=1)
    return (sharpness + quiet) / 2


def temporal_flickering(view: View) -> np.ndarray:
    """Only for "standing still" captions; NaN elsewhere, [N]."""
    if view.wanted.moving.all():
        raise NotApplicable("no caption says 'standing still': flicker is judged on those alone")
    return np.where(view.wanted.moving, np.nan, appearance.flicker(view.videos))


def gated_dynamic(view: View) -> np.ndarray:
    """Which clips are dynamic when only frames on the real manifold count, [N]."""
    frames = view.on_manifold[:, :: view.rule.interval]
    return motion.dynamic(view.magnitudes, view.rule, frames).astype(float)


DIMENSIONS: dict[str, Callable[[View], np.ndarray]] = {
    "subject_consistency": lambda view: appearance.consistency(view.readings.identity),
    "background_consistency": lambda view: appearance.background_consistency(
        view.videos, view.mask
    ),
    "temporal_flickering": temporal_flickering,
    "motion_smoothness": lambda view: motion.smoothness(view.videos),
    "dynamic_degree": gated_dynamic,
    "realism": lambda view: view.on_manifold.mean(axis=1),
    "imaging": imaging,
}


def per_clip(values: np.ndarray, seed: int, scale: float = 1.0) -> Measurement:
    """Mean of per-clip values with its bootstrap interval; NaN marks clips left out."""
    values = np.asarray(values, np.float64) * scale
    n = int(np.isfinite(values).sum())
    if n == 0:
        raise NotApplicable("no clip to which this applies")
    return Measurement(float(np.nanmean(values)), n, bootstrap_interval(values, seed), values)


def of_resamples(scores: np.ndarray, n: int) -> Measurement:
    """A composite [1 + R], of all clips and of the resamples, with its percentile interval.

    Near the ceiling clipping pulls every resample below the value; the interval is then extended
    to hold it.
    """
    value = float(scores[0])
    low, high = np.quantile(scores[1:], [0.025, 0.975])
    return Measurement(value, n, (min(float(low), value), max(float(high), value)))


def dimension(view: View, name: str) -> np.ndarray:
    """Values [N] of one dimension, computed once per view."""
    known = view.__dict__.setdefault("dimensions", {})
    if name not in known:
        known[name] = DIMENSIONS[name](view)
    return known[name]


def normalised(values: np.ndarray, bounds: dict[str, float]) -> np.ndarray:
    """Between floor (0) and ceiling (1), clipped."""
    return np.clip((values - bounds["floor"]) / (bounds["ceiling"] - bounds["floor"]), 0, 1)


def quality_of(means: dict[str, np.ndarray], constants: dict[str, dict[str, float]]) -> np.ndarray:
    """World Quality of mean values per dimension (scalars or [R] resamples).

    Raises:
        ValueError: a dimension or its constants are missing or not finite (VBench's script would
            silently use zero).
    """
    total = 0.0
    for name, weight in WEIGHTS.items():
        if name not in means or name not in constants or not np.isfinite(means[name]).all():
            raise ValueError(
                f"World Quality needs {name}, which is missing: calibrate or score again"
            )
        total = total + weight * normalised(means[name], constants[name])
    return 100 * total / sum(WEIGHTS.values())


def resampled_means(view: View) -> dict[str, np.ndarray]:
    """Mean of every dimension, [1 + R]: first of all clips, then of the bootstrap's resamples."""
    counts = np.vstack([np.ones(view.clips), resample_weights(view.clips, 1000, view.seed)])
    means = {}
    for name in WEIGHTS:
        values = dimension(view, name)
        known = np.isfinite(values)
        drawn = counts[:, known]
        means[name] = drawn @ values[known] / np.maximum(drawn.sum(axis=1), 1)
    return means


def constants(view: View) -> dict[str, dict[str, float]]:
    """Floors and ceilings of the calibration."""
    if view.calibration is None:
        raise NotApplicable("no calibration: these are the clips that it is made from")
    return view.calibration["quality"]


@metric("world.quality", "World Quality", "set", "0..100", needs=("probe", "calibration"))
def world_quality(view: View) -> Measurement:
    """Weighted mean of the normalised dimensions."""
    scores = quality_of(resampled_means(view), constants(view))
    return of_resamples(scores, view.clips)


def _register(name: str) -> None:
    @metric(QUALITY + name, name.replace("_", " "), "sample", "0..1")
    def _(view: View) -> Measurement:
        measurement = per_clip(dimension(view, name), view.seed)
        if view.calibration is None:
            return measurement
        bounds = view.calibration["quality"][name]
        share = float(normalised(np.array(measurement.value), bounds))
        return Measurement(
            measurement.value,
            measurement.n,
            measurement.interval,
            measurement.per_clip,
            {"normalised": share, **bounds},
        )


for _name in DIMENSIONS:
    _register(_name)


@metric("world.dynamic_dis", "Dynamic (DIS)", "sample", "%", higher_is_better=None)
def dynamic_degree(view: View) -> Measurement:
    """Share of dynamic clips, gated: pairs count only between frames on the real manifold."""
    return per_clip(dimension(view, "dynamic_degree"), view.seed, 100)


@metric("world.dynamic_dis_raw", "Dynamic (DIS), raw", "sample", "%", None, needs=("pixels",))
def dynamic_raw(view: View) -> Measurement:
    """Share of dynamic clips by VBench's rule as it stands; noise counts as motion."""
    return per_clip(motion.dynamic(view.magnitudes, view.rule).astype(float), view.seed, 100)
