"""The law of transitions given the caption: what World Quality compares.

One vector describes the step from a frame to the next: the probe's features of both, the caption,
and three readings: how the digit moved, how far the ground of both agrees if it moved as it should
and if it did not move, and which digit is seen. Agreement is the mean of (2 p - 1)(2 p' - 1) over
tiles, p and p' the probe's probabilities that a tile is bright: 1 if both frames show the same
levels, about 0 if they are independent, and about 0 for a gray between the levels, of which the
probe is not sure.

The Frechet distance of such vectors to real ones is the Frechet joint distance (DeVries et al.
2019, arXiv 1907.08175), whose rule for the scale of the condition is used for all parts: on real
clips the caption has the mean norm of the features, and each reading half of it. So a set of clips
is far from real if its frames are blurred, if they do not follow each other, or if they follow
another caption, and clean single frames alone earn nothing.
"""

from dataclasses import dataclass

import numpy as np

from experiments.metrics.distances import Gaussian, frechet_distances
from experiments.worlds.digits.probe_network import Readings
from experiments.worlds.digits.wanted import Wanted

SHARES = (1.0, 1.0, 0.5, 0.5, 0.5)  # mean norms of features, caption, motion, ground, digit


def pairs(features: np.ndarray) -> np.ndarray:
    """Features of neighbouring frames side by side, [N, T-1, 2D]."""
    return np.concatenate([features[:, :-1], features[:, 1:]], axis=-1)


def ground_agreement(ground: np.ndarray) -> np.ndarray:
    """How far the ground of a frame is that of the frame before, moved left by a tile, and not
    moved: -1..1, [N, T-1, 2] of probabilities [N, T, rows, columns].
    """
    sign = 2 * ground - 1
    before, after = sign[:, :-1], sign[:, 1:]
    overlaps = (before[..., 1:], after[..., :-1]), (before, after)
    return np.stack([(one * other).mean(axis=(-1, -2)) for one, other in overlaps], axis=-1)


def ground_certainty(ground: np.ndarray) -> np.ndarray:
    """Mean of |2 p - 1| over the tiles of each frame, 0..1, [N, T]."""
    return np.abs(2 * ground - 1).mean(axis=(-1, -2))


def digit_seen(readings: Readings) -> np.ndarray:
    """Probability of each digit, mean of both frames of a transition; 0 in frames that show none.

    Returns:
        [N, T-1, 10].
    """
    seen = readings.classes * (readings.presence > 0.5)[..., None]
    return (seen[:, 1:] + seen[:, :-1]) / 2


@dataclass(frozen=True)
class TransitionLaw:
    """The Gaussian of real transitions, and the scale of each part of their vectors."""

    scales: tuple[float, ...]
    real: Gaussian

    @classmethod
    def of(cls, readings: Readings, wanted: Wanted) -> "TransitionLaw":
        """Fit to what the probe reads of real clips, and their captions."""
        parts = _parts(readings, wanted)
        norms = [float(np.linalg.norm(part, axis=-1).mean()) for part in parts]
        shares = zip(SHARES, norms, strict=True)
        scales = tuple(share * norms[0] / norm for share, norm in shares)
        vectors = _joined(parts, scales)
        return cls(scales, Gaussian.of(vectors.reshape(-1, vectors.shape[-1])))

    def distance(
        self, readings: Readings, wanted: Wanted, weights: np.ndarray | None
    ) -> tuple[float, np.ndarray]:
        """Squared Frechet distance of clips to the law, and its bootstrap over clips.

        Args:
            readings: of the clips.
            wanted: their captions.
            weights: float [R, N] from `resample_weights`, or None for no bootstrap.
        """
        vectors = _joined(_parts(readings, wanted), self.scales)
        return frechet_distances(vectors, self.real, weights)


def _parts(readings: Readings, wanted: Wanted) -> list[np.ndarray]:
    """Features, caption, motion [px], ground and digit of each transition: [N, T-1, D_k] each."""
    both = pairs(readings.features)
    caption = np.repeat(wanted.indicators()[:, None], both.shape[1], axis=1)
    moved, ground = np.diff(readings.position, axis=1), ground_agreement(readings.ground)
    return [both, caption, moved, ground, digit_seen(readings)]


def _joined(parts: list[np.ndarray], scales: tuple[float, ...]) -> np.ndarray:
    return np.concatenate([p * scale for p, scale in zip(parts, scales, strict=True)], axis=-1)
