"""Generated clips against held-out clips of the law: distance, drift, precision, recall."""

import numpy as np

from experiments.metrics.distances import Manifold, precision_recall
from experiments.metrics.registry import Measurement
from experiments.metrics.statistics import (
    bootstrap_interval,
    kendall,
    resample,
    slope,
    spread_interval,
)
from experiments.worlds.closed_form.context import View, of_samples
from experiments.worlds.closed_form.distances import energy_distance, sliced_wasserstein

KEPT = 0.99  # share of held-out clips above the density threshold of precision


@of_samples("law.energy", "energy distance")
def energy(view: View) -> Measurement:
    """Energy distance of whole clips to held-out clips."""
    value, drawn = energy_distance(_flat(view.samples), _flat(view.reference), view.weights)
    return Measurement(value, len(view.samples), spread_interval(value, drawn))


@of_samples("law.sliced_wasserstein", "sliced Wasserstein distance")
def sliced(view: View) -> Measurement:
    """Sliced 1-Wasserstein distance of whole clips to held-out clips."""
    drawn = resample(len(view.samples), len(view.weights), view.seed)
    value, drawn = sliced_wasserstein(_flat(view.samples), _flat(view.reference), drawn, view.seed)
    return Measurement(value, len(view.samples), spread_interval(value, drawn))


@of_samples("law.energy_drift", "drift of the energy distance", unit="per frame")
def energy_drift(view: View) -> Measurement:
    """Theil-Sen slope over frame indices of the distance between frames; positive: later frames are
    worse.
    """
    own, real = (clips.vectors.numpy() for clips in (view.samples, view.reference))
    frames = [energy_distance(own[:, i], real[:, i], view.weights) for i in range(own.shape[1])]
    curve, drawn = np.array([v for v, _ in frames]), np.stack([d for _, d in frames], axis=1)
    value = float(slope(curve))
    return Measurement(
        value,
        len(own),
        spread_interval(value, slope(drawn), least=-np.inf),
        extra={"tau": kendall(curve)},
        curves={"by_frame": curve.tolist()},
    )


@of_samples(
    "law.precision", "precision (density)", scope="sample", unit="0..1", higher_is_better=True
)
def precision(view: View) -> Measurement:
    """Share of clips to which the law gives at least the density that 99% of held-out ones have.

    Uses the law's exact density, so no neighbourhood size has to be chosen.
    """
    bound = np.quantile(view.law.log_density(view.reference.vectors).numpy(), 1 - KEPT)
    inside = (view.law.log_density(view.samples.vectors).numpy() >= bound).astype(float)
    return Measurement(
        float(inside.mean()), len(inside), bootstrap_interval(inside, view.seed), inside
    )


@of_samples("law.recall", "recall (neighbours)", unit="0..1", higher_is_better=True)
def recall(view: View) -> Measurement:
    """Share of held-out clips within reach of a generated one: k-nearest-neighbour balls
    (Kynkaanniemi et al. 2019), since generated clips have no density.
    """
    manifold, own = Manifold(_flat(view.reference)), _flat(view.samples)
    found = precision_recall(manifold, own, np.arange(len(own)), view.weights)
    interval = spread_interval(found.recall, found.resampled["recall"])
    return Measurement(found.recall, len(own), interval)


def _flat(clips) -> np.ndarray:
    return clips.vectors.flatten(1).numpy()
