"""Distances between samples of two laws, with their bootstrap over the first sample's clips."""

import numpy as np
from scipy.spatial.distance import cdist

PROJECTIONS = 64
SORTED_RESAMPLES = 40  # resamples of the sliced distance: each has to be sorted again


def energy_distance(
    generated: np.ndarray, real: np.ndarray, weights: np.ndarray
) -> tuple[float, np.ndarray]:
    """``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` (Szekely and Rizzo 2013), pairs of one clip included.

    Never negative, and zero only for equal samples: for two samples of one law its mean is about
    ``E|X - X'| (1/N + 1/M)``, shown in the tables as the floor.

    Args:
        generated: float [N, D].
        real: float [M, D].
        weights: bootstrap counts [R, N] over `generated`.

    Returns:
        the distance, and its resamples [R].
    """
    across = cdist(generated, real).mean(axis=1)
    within = cdist(generated, generated)
    other = cdist(real, real).mean()
    share = weights / len(generated)
    drawn = 2 * share @ across - ((share @ within) * share).sum(axis=1) - other
    return float(2 * across.mean() - within.mean() - other), drawn


def conditional_energy(generated: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Unbiased (U-statistic) energy distance of many small pairs of samples: float [P].

    Pairs of a draw with itself are left out, so it can be negative; its expectation is zero where
    the distributions agree.

    Args:
        generated: float [P, S, D], S draws for each of P contexts.
        real: float [P, T, D].
    """
    return 2 * _mean_distance(generated, real) - _spread(generated) - _spread(real)


def sliced_wasserstein(
    generated: np.ndarray, real: np.ndarray, resamples: np.ndarray, seed: int
) -> tuple[float, np.ndarray]:
    """Mean over random directions of the 1-Wasserstein distance of the projections (Bonneel et al.
    2015).

    Args:
        generated, real: float [N, D] each; of unequal sizes the larger is thinned.
        resamples: bootstrap indices int [R, N].
        seed: of the directions.

    Returns:
        the distance, and its resamples [R].
    """
    count = min(len(generated), len(real))
    directions = np.random.default_rng(seed).normal(size=(generated.shape[1], PROJECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    targets = np.sort(real[:count] @ directions, axis=0)
    projected = generated @ directions

    def distance(chosen: np.ndarray) -> float:
        return float(np.abs(np.sort(projected[chosen], axis=0) - targets).mean())

    drawn = [distance(rows[:count]) for rows in resamples[:SORTED_RESAMPLES]]
    return distance(np.arange(count)), np.array(drawn)


def _mean_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.linalg.norm(first[:, :, None] - second[:, None], axis=-1).mean(axis=(1, 2))


def _spread(draws: np.ndarray) -> np.ndarray:
    count = draws.shape[1]
    return _mean_distance(draws, draws) * count / (count - 1)
