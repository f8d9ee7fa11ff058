"""World Quality: how near the law of transitions is to that of real clips, given their captions.

With d the Frechet joint distance of `transitions`, d_real that of held-out real clips, and d_floor
the least of the worthless versions of real clips (noise, blur, shuffled and frozen frames, wrong
captions and more: `corruption`), all measured once (`calibration`):

    World Quality = 100 * log(d_floor / d) / log(d_floor / d_real)

Every halving of the distance counts the same; real clips get 100 and the best of the worthless ones
0, up to the noise between the clips that the constants were measured on and others. It stops at
neither: clips that are farther from real than those are below 0, and can still be told apart.

VBench's Quality is the mean of seven dimensions of single clips. Their analogues are no part of
this one, because in a world where real clips are known they reward what is worthless: flicker,
smoothness and consistency are highest for frozen or blurred clips, sharpness and the share of
frames on the real manifold for shuffled ones, and all of them ignore the caption. Dynamic degree
is a column of its own.
"""

import numpy as np

from experiments.metrics import motion
from experiments.metrics.registry import Measurement, NotApplicable, metric
from experiments.metrics.statistics import bootstrap_interval, spread_interval
from experiments.worlds.digits.context import View


def gated_dynamic(view: View) -> np.ndarray:
    """Which clips are dynamic when only frames on the real manifold count, [N]."""
    frames = view.on_manifold[:, :: view.rule.interval]
    return motion.dynamic(view.magnitudes, view.rule, frames).astype(float)


def per_clip(values: np.ndarray, seed: int, scale: float = 1.0) -> Measurement:
    """Mean of per-clip values with its bootstrap interval; NaN marks clips left out."""
    values = np.asarray(values, np.float64) * scale
    n = int(np.isfinite(values).sum())
    if n == 0:
        raise NotApplicable("no clip to which this applies")
    return Measurement(float(np.nanmean(values)), n, bootstrap_interval(values, seed), values)


def of_resamples(scores: np.ndarray, n: int) -> Measurement:
    """A composite [1 + R], of all clips and of the resamples, with the interval of its spread."""
    value = float(scores[0])
    return Measurement(value, n, spread_interval(value, scores[1:], least=-np.inf))


def quality_of(distances: np.ndarray, bounds: dict[str, float]) -> np.ndarray:
    """World Quality of distances (any shape), with the `floor` and `ceiling` of the calibration."""
    floor, ceiling = bounds["floor"], bounds["ceiling"]
    return 100 * np.log(floor / np.maximum(distances, 1e-12)) / np.log(floor / ceiling)


def qualities(view: View) -> np.ndarray:
    """World Quality [1 + R]: of all clips, then of the bootstrap's resamples.

    A resample holds 63% distinct clips and is farther from real for that alone; only the spread
    of the resamples is used, so they are moved to where the distance itself lies.
    """
    if view.calibration is None:
        raise NotApplicable("no calibration: these are the clips that it is made from")
    value, drawn = view.distance
    moved = drawn * (value / drawn.mean())
    return quality_of(np.concatenate([[value], moved]), view.calibration["distance"])


@metric("world.quality", "World Quality", "set", "real = 100", needs=("probe", "calibration"))
def world_quality(view: View) -> Measurement:
    """The distance of transitions on a logarithmic scale: worthless clips 0, real ones 100."""
    return of_resamples(qualities(view), view.clips)


@metric("world.distance", "Frechet joint distance of transitions", "set", "features^2", False)
def distance(view: View) -> Measurement:
    """Of the vectors of `transitions`: frames, motion, ground and caption together."""
    value, drawn = view.distance
    return Measurement(value, view.clips, spread_interval(value, drawn))


@metric("world.dynamic_dis", "Dynamic (DIS)", "sample", "%", higher_is_better=None)
def dynamic_degree(view: View) -> Measurement:
    """Share of dynamic clips, gated: pairs count only between frames on the real manifold."""
    return per_clip(gated_dynamic(view), view.seed, 100)


@metric("world.dynamic_dis_raw", "Dynamic (DIS), raw", "sample", "%", None, needs=("pixels",))
def dynamic_raw(view: View) -> Measurement:
    """Share of dynamic clips by VBench's rule as it stands; noise counts as motion."""
    return per_clip(motion.dynamic(view.magnitudes, view.rule).astype(float), view.seed, 100)
