"""Fit of read positions to the world's dynamics: the nearest admissible path, and its residual.

A digit moves along an axis at the clip's speed; before each step but the first it may turn by
90 degrees to either side, never back; at a wall its position reflects and its velocity flips. For
each of the three speeds the best sequence of directions is found exactly (Viterbi over four
directions, squared distance between the read displacement and the admissible one), then the best
speed is kept.

Arrays: position float [N, T, 2], sprite centres in px; steps index T-1.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

HEADINGS = ("right", "down", "left", "up")  # clockwise on the screen, y down
SPEEDS = ("still", "slow", "fast")
BRANCHES = ("straight", "clockwise", "counterclockwise")
_VECTORS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)], float)


class World(Protocol):
    """The parameters of the dynamics needed here (`moving_digits.World` has them)."""

    size: int
    sprite: int
    slow: float
    fast: float


@dataclass(frozen=True)
class Path:
    """The admissible path nearest to each of N clips' positions.

    Attributes:
        speed: int [N], index into SPEEDS.
        heading: int [N, T-1], index into HEADINGS, of each step before it meets a wall.
        branch: int [N, T-2], index into BRANCHES, what the digit did before steps 2, 3, ...
        residual: float [N, T-1], px between each displacement and the admissible one.
        step: float [N, T-1], px, length of each displacement as read.
    """

    speed: np.ndarray
    heading: np.ndarray
    branch: np.ndarray
    residual: np.ndarray
    step: np.ndarray

    @property
    def moving(self) -> np.ndarray:
        """Bool [N]: the clip is better explained by motion than by standing still."""
        return self.speed > 0

    def branches(self) -> np.ndarray:
        """How often each clip went straight, clockwise, counterclockwise: float [N, 3], 0 if
        still.
        """
        kinds = self.branch[..., None] == np.arange(len(BRANCHES))
        return (kinds & self.moving[:, None, None]).sum(axis=1).astype(float)


def follow(position: np.ndarray, world: World) -> Path:
    """The admissible path nearest to the positions."""
    position = np.asarray(position, float)
    options = [_best(position, speed, world) for speed in (world.slow, world.fast)]
    step = np.linalg.norm(np.diff(position, axis=1), axis=-1)
    still = np.zeros_like(options[0][0])
    options.insert(0, (still, still[:, 1:], step))
    costs = np.stack([(residual**2).sum(axis=1) for _, _, residual in options])
    speed = costs.argmin(axis=0)
    clips = np.arange(len(position))
    heading, branch, residual = (
        np.stack([option[part] for option in options])[speed, clips] for part in range(3)
    )
    return Path(speed, heading, branch, residual, step)


def _best(
    position: np.ndarray, speed: float, world: World
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Viterbi for one speed: heading [N, T-1], branch [N, T-2], residual [N, T-1]."""
    landed, flipped = _steps(position[:, :-1], speed, world)
    distance = np.linalg.norm(position[:, 1:, None] - landed, axis=-1)  # [N, T-1, 4]
    clips, steps = distance.shape[:2]
    leaving = np.where(flipped, (np.arange(4) + 2) % 4, np.arange(4))  # [N, T-1, 4]
    quarter = (np.arange(4) - leaving[..., None]) % 4  # [N, T-1, from, to]
    cost = distance[:, 0] ** 2
    came = np.zeros((clips, steps, 4), int)
    for k in range(1, steps):
        routes = cost[:, :, None] + np.where(quarter[:, k - 1] == 2, np.inf, 0)
        came[:, k] = routes.argmin(axis=1)
        cost = routes.min(axis=1) + distance[:, k] ** 2
    heading = np.zeros((clips, steps), int)
    heading[:, -1] = cost.argmin(axis=1)
    rows = np.arange(clips)
    for k in range(steps - 1, 0, -1):
        heading[:, k - 1] = came[rows, k, heading[:, k]]
    residual = np.take_along_axis(distance, heading[..., None], axis=2)[..., 0]
    left = np.take_along_axis(leaving, heading[..., None], axis=2)[..., 0]
    turned = (heading[:, 1:] - left[:, :-1]) % 4
    branch = np.where(turned == 3, 2, turned)
    return heading, branch, residual


def _steps(position: np.ndarray, speed: float, world: World) -> tuple[np.ndarray, np.ndarray]:
    """Where each of four steps lands [..., 4, 2] after reflection, and whether it met a wall [...,
    4].
    """
    low, high = world.sprite / 2, world.size - world.sprite / 2
    moved = np.clip(position, low, high)[..., None, :] + speed * _VECTORS
    landed = np.where(moved < low, 2 * low - moved, moved)
    landed = np.where(landed > high, 2 * high - landed, landed)
    return landed, (landed != moved).any(axis=-1)
