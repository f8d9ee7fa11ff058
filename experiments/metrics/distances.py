"""Distances between two sets of feature vectors: Frechet, nearest-neighbour manifolds, branch
divergence.

Features are float [N, D]; set-wise metrics come with their bootstrap over clips, computed from
per-clip sums, so that a resample costs one small eigenvalue problem and no pass over the frames.
"""

from dataclasses import dataclass

import numpy as np

NEIGHBOURS = 5  # k of Naeem et al. 2020


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D] of features, and their number."""

    mean: np.ndarray
    covariance: np.ndarray
    root: np.ndarray  # symmetric square root of the covariance

    @classmethod
    def of(cls, features: np.ndarray) -> "Gaussian":
        """Fit to float [N, D], N >= 2."""
        features = np.asarray(features, np.float64)
        covariance = np.cov(features, rowvar=False)
        values, vectors = np.linalg.eigh(covariance)
        root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
        return cls(features.mean(axis=0), covariance, root)


def frechet(mean: np.ndarray, covariance: np.ndarray, real: Gaussian) -> float:
    """Squared Frechet distance of two Gaussians (Dowson and Landau 1982; Heusel et al. 2017).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C2^1/2 C1 C2^1/2)^1/2): the symmetric form, so that only real
    eigenvalues occur.
    """
    inner = real.root @ covariance @ real.root
    values = np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0, None)
    gap = mean - real.mean
    trace = np.trace(covariance) + np.trace(real.covariance) - 2 * np.sqrt(values).sum()
    return float(max(gap @ gap + trace, 0.0))


def frechet_distances(
    features: np.ndarray, real: Gaussian, weights: np.ndarray | None
) -> tuple[float, np.ndarray]:
    """Frechet distance of clips to real ones, and its bootstrap.

    Args:
        features: float [N, K, D]: K vectors (frames, pairs of frames) of each of N clips.
        real: the Gaussian of the real features.
        weights: float [R, N] from `resample_weights`, or None for no bootstrap.

    Returns:
        the distance, and float [R] distances of the resamples ([0] without weights).
    """
    clips, each, width = features.shape
    flat = features.reshape(-1, width)
    own = Gaussian.of(flat)
    estimate = frechet(own.mean, own.covariance, real)
    if weights is None:
        return estimate, np.empty(0)
    shifted = (features - own.mean).astype(np.float32)
    outer = np.einsum("nkd,nke->nde", shifted, shifted, optimize=True).reshape(clips, -1)
    total = clips * each
    means = weights.astype(np.float32) @ shifted.sum(axis=1) / total
    squares = (weights.astype(np.float32) @ outer / total).reshape(-1, width, width)
    return estimate, np.array(
        [
            frechet(own.mean + m, square - np.outer(m, m), real)
            for m, square in zip(means.astype(np.float64), squares.astype(np.float64), strict=True)
        ]
    )


def square_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances [N, M] of float32 rows."""
    first, second = np.asarray(first, np.float32), np.asarray(second, np.float32)
    cross = first @ second.T
    return np.maximum(
        (first**2).sum(1)[:, None] + (second**2).sum(1)[None, :] - 2 * cross, 0, dtype=np.float32
    )


class Manifold:
    """A union of balls around points, each reaching to its k-th neighbour (Kynkaanniemi et al.
    2019).
    """

    def __init__(self, points: np.ndarray, neighbours: int = NEIGHBOURS) -> None:
        """Points float [M, D], M > neighbours."""
        if len(points) <= neighbours:
            raise ValueError(
                f"a manifold of {neighbours} neighbours needs more than {len(points)} frames: "
                "raise score.clips or score.reference_clips"
            )
        self.points = np.asarray(points, np.float32)
        self.neighbours = neighbours
        distances = square_distances(self.points, self.points)
        np.fill_diagonal(distances, 0)
        self.radii = np.partition(distances, neighbours, axis=1)[:, neighbours]

    def within(self, features: np.ndarray) -> np.ndarray:
        """Bool [N, M]: which features lie in the ball of which point."""
        return square_distances(features, self.points) <= self.radii[None, :]


@dataclass(frozen=True)
class Coverage:
    """Precision, recall, density and coverage, with bootstraps [R] over the generated clips."""

    precision: float
    recall: float
    density: float
    coverage: float
    resampled: dict[str, np.ndarray]


def precision_recall(
    real: Manifold, fake: np.ndarray, owner: np.ndarray, weights: np.ndarray
) -> Coverage:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Density above 1 with recall near 0 indicates mode seeking.

    Args:
        real: manifold of M real frames.
        fake: generated features float [N, D], N about M.
        owner: int [N], the clip each came from.
        weights: float [R, clips]; radii of the generated manifold are held fixed while resampling.
    """
    inside = real.within(fake)  # [N, M]
    own = Manifold(fake, real.neighbours)
    reached = own.within(real.points).T  # [N, M]: real point within the ball of a generated one
    drawn = weights[:, owner].astype(np.float32)  # [R, N]
    total = drawn.sum(axis=1)
    any_real, share = inside.any(axis=1), inside.sum(axis=1) / real.neighbours
    return Coverage(
        precision=float(any_real.mean()),
        recall=float(reached.any(axis=0).mean()),
        density=float(share.mean()),
        coverage=float(inside.any(axis=0).mean()),
        resampled={
            "precision": drawn @ any_real / total,
            "recall": (drawn @ reached.astype(np.float32) > 0).mean(axis=1),
            "density": drawn @ share / total,
            "coverage": (drawn @ inside.astype(np.float32) > 0).mean(axis=1),
        },
    )


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence KL(p || q), nats, of counts [..., K]; half a count is added to
    each.
    """
    p, q = np.asarray(p, np.float64) + 0.5, np.asarray(q, np.float64) + 0.5
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return (p * np.log(p / q)).sum(-1)
