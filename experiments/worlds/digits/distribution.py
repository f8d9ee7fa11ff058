"""Distributional metrics that real videos do not allow: identity, dynamics, turns, drift, coverage.

Distances are taken in the probe's feature space against real clips; the `ceiling` row of the table
is the same code on held-out real clips, i.e. the finite-sample floor of real against real.
"""

import numpy as np

from experiments.metrics.distances import (
    Gaussian,
    divergence,
    frechet_distances,
    precision_recall,
)
from experiments.metrics.registry import Measurement, NotApplicable, metric
from experiments.metrics.statistics import kendall, slope, spread_interval
from experiments.worlds.digits.context import View
from experiments.worlds.digits.quality import per_clip
from experiments.worlds.digits.reference import MANIFOLD_CLIPS
from experiments.worlds.digits.trajectory import BRANCHES, SPEEDS
from experiments.worlds.digits.transitions import ground_agreement, ground_certainty, pairs


def digits_read(view: View) -> np.ndarray:
    """Digit read in each frame, -1 where there is none, int [N, T]."""
    return np.where(view.readings.presence > 0.5, view.readings.classes.argmax(axis=-1), -1)


@metric("world.presence", "frames with a digit", "sample", "%")
def presence(view: View) -> Measurement:
    """Share of frames that show exactly one digit."""
    return per_clip((view.readings.presence > 0.5).mean(axis=1), view.seed, 100)


@metric("world.ground.certainty", "ground of two levels", "sample", "%")
def certainty(view: View) -> Measurement:
    """How surely the probe reads each tile as dark or bright; a gray between them is 0."""
    return per_clip(ground_certainty(view.readings.ground).mean(axis=1), view.seed, 100)


@metric("world.ground.scroll", "ground scrolls", "sample", "%")
def scroll(view: View) -> Measurement:
    """How far the ground of each frame is that of the frame before, moved as it should be."""
    return per_clip(ground_agreement(view.readings.ground)[..., 0].mean(axis=1), view.seed, 100)


@metric("world.identity.switches", "identity switches", "sample", "per clip", False)
def switches(view: View) -> Measurement:
    """How often the digit read changes from one frame to the next."""
    return per_clip((np.diff(digits_read(view), axis=1) != 0).sum(axis=1), view.seed)


@metric("world.physics.residual", "distance to the law", "sample", "px", False)
def law_residual(view: View) -> Measurement:
    """Mean distance between each step, as read by the probe, and the nearest admissible one."""
    return per_clip(view.path.residual.mean(axis=1), view.seed)


@metric("world.motion_ratio", "motion relative to real", "sample", "ratio", None)
def motion_ratio(view: View) -> Measurement:
    """Mean step length over that of real clips of the speeds that the captions name; 1 is right."""
    step, speed = view.reference.path.step.mean(axis=1), view.reference.path.speed
    kinds = np.unique(view.wanted.speed)
    if missing := set(kinds) - set(np.unique(speed)):
        raise NotApplicable(f"the reference has no {', '.join(SPEEDS[k] for k in missing)} clip")
    usual = {kind: step[speed == kind].mean() for kind in kinds}
    expected = np.mean([usual[kind] for kind in view.wanted.speed])
    return per_clip(view.path.step.mean(axis=1) / expected, view.seed)


def _turns(view: View, forward: bool) -> Measurement:
    counts, real = view.path.branches(), view.reference.path.branches().sum(axis=0)
    if counts.sum() == 0:
        raise NotApplicable("no clip moves, so none turns")
    drawn = np.vstack([counts.sum(axis=0), view.weights @ counts])
    kl = divergence(real, drawn) if forward else divergence(drawn, real)
    shares = dict(zip(BRANCHES, drawn[0] / drawn[0].sum(), strict=True))
    moving = int(view.path.moving.sum())
    return Measurement(
        float(kl[0]),
        moving,
        spread_interval(float(kl[0]), kl[1:]),
        extra={name: float(share) for name, share in shares.items()},
    )


@metric("world.turns.kl_covering", "KL(real || generated) of turns", "set", "nats", False)
def turns_covering(view: View) -> Measurement:
    """Large when generated clips miss turns that real ones take (mode seeking)."""
    return _turns(view, forward=True)


@metric("world.turns.kl_seeking", "KL(generated || real) of turns", "set", "nats", False)
def turns_seeking(view: View) -> Measurement:
    """Large when generated clips take turns that real ones rarely take (mode covering)."""
    return _turns(view, forward=False)


@metric("world.fd_pairs", "Frechet distance, frame pairs", "set", "features^2", False)
def fd_pairs(view: View) -> Measurement:
    """On concatenated probe features of neighbouring frames: appearance and motion together."""
    real = Gaussian.of(_flat(pairs(view.reference.readings.features)))
    value, drawn = frechet_distances(pairs(view.readings.features), real, view.weights)
    return Measurement(value, view.clips, spread_interval(value, drawn))


def fd_by_frame(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Frechet distance between generated and real frames at each index, [T], and its resamples
    [R, T], where a clip is drawn with all its frames.
    """
    if "fd_by_frame" not in view.__dict__:
        fake, real = view.readings.features, view.reference.readings.features
        found = [
            frechet_distances(fake[:, t : t + 1], Gaussian.of(real[:, t]), view.weights)
            for t in range(fake.shape[1])
        ]
        values, drawn = zip(*found, strict=True)
        view.__dict__["fd_by_frame"] = np.array(values), np.stack(drawn, axis=1)
    return view.__dict__["fd_by_frame"]


@metric("world.fd_drift", "drift of the Frechet distance", "set", "features^2/frame", False)
def fd_drift(view: View) -> Measurement:
    """Theil-Sen slope of the distance over frame indices; positive: later frames are worse."""
    curve, drawn = fd_by_frame(view)
    half, value = len(curve) // 2, float(slope(curve))
    gap = float(curve[half:].mean() - curve[:half].mean())
    extra = {"tau": kendall(curve), "late_minus_early": gap}
    interval = spread_interval(value, slope(drawn), least=-np.inf)
    return Measurement(value, view.clips, interval, extra=extra)


def _coverage(view: View):
    if "coverage" not in view.__dict__:
        fake = view.readings.features[:MANIFOLD_CLIPS, ::2]
        owner = np.repeat(np.arange(len(fake)), fake.shape[1])
        view.__dict__["coverage"] = precision_recall(
            view.reference.manifold, _flat(fake), owner, view.weights
        )
    return view.__dict__["coverage"]


def _register(name: str, meaning: str) -> None:
    @metric(f"world.{name}", f"{name} ({meaning})", "set", "0..1")
    def _(view: View) -> Measurement:
        found = _coverage(view)
        value = getattr(found, name)
        return Measurement(value, view.clips, spread_interval(value, found.resampled[name]))


_register("precision", "generated frames within reach of a real one")
_register("recall", "real frames within reach of a generated one")
_register("density", "real neighbours of a generated frame")
_register("coverage", "real frames with a generated neighbour")


def curves(view: View) -> dict[str, list[float]]:
    """Per frame index (or per step between frames): shows where in the clip errors arise."""
    return {
        "world.fd_by_frame": [float(v) for v in fd_by_frame(view)[0]],
        "world.identity_by_frame": _mean(view.digit_right),
        "world.realism_by_frame": _mean(view.on_manifold),
        "world.presence_by_frame": _mean(view.readings.presence > 0.5),
        "world.sharpness_by_frame": _mean(view.sharpness / view.reference.sharpness),
        "world.ground_by_frame": _mean(ground_certainty(view.readings.ground)),
        "world.residual_by_step": _mean(view.path.residual),
        "world.motion_by_step": _mean(view.path.step),
    }


def _flat(features: np.ndarray) -> np.ndarray:
    return features.reshape(-1, features.shape[-1])


def _mean(values: np.ndarray) -> list[float]:
    return [float(v) for v in np.asarray(values, np.float64).mean(axis=0)]
