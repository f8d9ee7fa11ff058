"""The law of a walk through the room: random keys that stick, walls that stop, a lamp by chance.

Given the past and the camera the next frame would be nearly certain, and such a world cannot tell
one few-step student from another. Hence the lamp, which switches by chance; its caption says
nothing of it. The stored camera is the one *after* a wall has stopped it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from datamodules.cameras import Keys, Stride, inverse, motion, placed
from experiments.worlds.room.paint import PAINTS, WALLS, paintings
from experiments.worlds.room.render import INTRINSICS, render
from lightning_modules.ranges import FrameRate, Positive, PositiveInt, UnitInterval

KEYS: tuple[Keys, ...] = tuple(frozenset(key) for key in ("w", "s", "a", "d", "j", "l", ""))
"""What may be pressed: the room has no pitch, and one key at a time."""
REACH = 1.2
"""How far from the middle one may walk, along x and z; the walls are at 2."""
SPLITS = ("train", "heldout")
_TURNS = KEYS[4:6]


@dataclass(frozen=True)
class Room:
    """The parameters of the law.

    Args:
        size: pixels of a side; a multiple of 8, the autoencoder's patch.
        frames: of a clip.
        fps: frames per second.
        step: of a key, in half a wall's height.
        turn: of a key, in degrees.
        sticky: probability that the key of the frame before is kept.
        lamp: probability that the lamp switches before a frame.
        coins: whether a coin decides, for each wall and clip, which of two paintings it bears.
    """

    size: PositiveInt = 32
    frames: PositiveInt = 8
    fps: FrameRate = 8
    step: Positive = 0.3
    turn: Positive = 15.0
    sticky: UnitInterval = 0.7
    lamp: UnitInterval = 0.2
    coins: bool = False

    def __post_init__(self) -> None:
        if self.size % 8:
            raise ValueError(f"size: {self.size} pixels are no whole patches of 8; use 32")

    @property
    def stride(self) -> Stride:
        """What a key does."""
        return Stride(self.step, self.turn)

    def walk(
        self, split: str, seed: int, index: int, chosen: Sequence[Keys] | None = None
    ) -> "Walk":
        """The walk of a number, which depends on (seed, split, index) and chosen keys alone.

        Args:
            split: of `SPLITS`.
            seed: of the set.
            index: of the walk.
            chosen: keys of every frame after the first; None: by chance, for a clip.
        """
        generator = np.random.default_rng([seed, SPLITS.index(split), index])
        x, z = generator.uniform(-REACH, REACH, 2)
        start = placed(x, z, generator.uniform(0, 360))
        paint = list(PAINTS)[generator.integers(len(PAINTS))]
        coins = generator.random(len(WALLS)) < 0.5
        others = [wall for wall, coin in zip(WALLS, coins, strict=True) if coin and self.coins]
        poses, keys, dark = [start], [], [bool(generator.random() < 0.5)]
        for number in range(self.frames - 1 if chosen is None else len(chosen)):
            if chosen is None:
                key = self.next_key(generator, keys[-1] if keys else None, poses[-1])
            else:
                key = chosen[number]
            keys.append(key)
            poses.append(step(poses[-1], key, self.stride))
            dark.append(dark[-1] ^ bool(generator.random() < self.lamp))
        return Walk(self, paint, tuple(others), np.stack(poses), tuple(keys), np.array(dark))

    def next_key(self, generator: np.random.Generator, last: Keys | None, pose: np.ndarray) -> Keys:
        """A key by chance; one that a wall would stop at once becomes a turn."""
        sticks, fresh, turn = generator.random(), generator.integers(7), generator.integers(2)
        key = last if last is not None and sticks < self.sticky else KEYS[fresh]
        stopped = key and np.allclose(step(pose, key, self.stride), pose)
        return _TURNS[turn] if stopped else key


@dataclass(frozen=True)
class Walk:
    """A walk: what is known of a clip.

    Args:
        room: its law.
        paint: a key of `PAINTS`.
        others: walls that bear their other painting.
        poses: world-to-camera ``[F, 4, 4]`` in the room.
        keys: held before each frame after the first.
        dark: ``[F]`` bool, whether the lamp is off.
    """

    room: Room
    paint: str
    others: tuple[str, ...]
    poses: np.ndarray
    keys: tuple[Keys, ...]
    dark: np.ndarray

    @cached_property
    def faces(self) -> np.ndarray:
        """What is painted on the six faces."""
        return paintings(self.paint, frozenset(self.others))

    @cached_property
    def video(self) -> np.ndarray:
        """Uint8 ``[F, size, size, 3]``."""
        return render(self.poses, self.faces, self.dark, self.room.size)

    @property
    def intrinsics(self) -> np.ndarray:
        """``[F, 4]`` float32."""
        return np.tile(np.float32(INTRINSICS), (len(self.poses), 1))


def place_of(pose: np.ndarray) -> tuple[float, float, float]:
    """x, z and yaw [degrees] of a walker: the inverse of `placed`."""
    camera = inverse(pose)
    yaw = np.degrees(np.arctan2(camera[0, 2], camera[2, 2]))
    return float(camera[0, 3]), float(camera[2, 3]), float(yaw)


def step(pose: np.ndarray, keys: Keys, stride: Stride) -> np.ndarray:
    """World-to-camera after a key, stopped by the walls."""
    camera = inverse(pose) @ motion(keys, stride)
    camera[[0, 2], 3] = camera[[0, 2], 3].clip(-REACH, REACH)
    return inverse(camera)
