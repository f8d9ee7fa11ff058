"""What the metrics of the room share: clips, the walks that were commanded, the cameras found.

Shapes: N clips of T frames of S x S pixels. A place is x, z and yaw in degrees.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from datamodules.cameras import Keys, placed
from experiments.metrics.registry import metric
from experiments.worlds.room.paint import paintings
from experiments.worlds.room.render import LIGHTS, seen
from experiments.worlds.room.search import differences, found
from experiments.worlds.room.walks import KEYS, Room, place_of, step

of_walks = partial(metric, scope="sample", needs=("walks",), kind="exact")
"""Registers a metric of clips of the room."""


@dataclass(frozen=True)
class Commanded:
    """The walk that a clip was asked for.

    Args:
        paint, others: what its room looks like.
        poses: world-to-camera in the room ``[T, 4, 4]``.
    """

    paint: str
    others: frozenset[str]
    poses: np.ndarray

    @property
    def faces(self) -> np.ndarray:
        """What is painted on the six faces."""
        return paintings(self.paint, self.others)

    @cached_property
    def places(self) -> np.ndarray:
        """``[T, 3]``."""
        return np.array([place_of(pose) for pose in self.poses])


@dataclass(frozen=True)
class View:
    """Clips to score.

    Args:
        videos: uint8 ``[N, T, S, S, 3]``.
        walks: that were commanded.
        room: the law.
        seed: of the bootstrap.
        progress: called with the number of clips whose cameras have been found.
    """

    videos: np.ndarray
    walks: list[Commanded]
    room: Room
    seed: int
    progress: Callable[[int], None] = lambda count: None

    @cached_property
    def rendered(self) -> np.ndarray:
        """The room at the commanded cameras, lamp on, float32 ``[N, T, S, S, 3]``."""
        size = self.videos.shape[2]
        return np.stack([seen(walk.poses, walk.faces, size) for walk in self.walks])

    @cached_property
    def errors(self) -> np.ndarray:
        """Mean squared difference to the commanded rendering in each light, ``[N, T, 2]``."""
        clips = self.videos.astype(np.float32) / 255
        return np.array([
            [differences(frame, true[None])[0] for frame, true in zip(clip, truth, strict=True)]
            for clip, truth in zip(clips, self.rendered, strict=True)
        ])  # fmt: skip

    @cached_property
    def light(self) -> np.ndarray:
        """Of each frame, 0 with the lamp on, 1 with it off, between where it is half lit, [N, T].

        The least-squares coordinate of a frame on the line between its two true pictures.
        """
        on = self.rendered * LIGHTS[0]
        line = self.rendered * LIGHTS[1] - on
        axes = (2, 3, 4)
        away = self.videos.astype(np.float32) / 255 - on
        return (away * line).sum(axes) / np.square(line).sum(axes)

    @cached_property
    def commanded(self) -> np.ndarray:
        """``[N, T, 3]``."""
        return np.stack([walk.places for walk in self.walks])

    @cached_property
    def found(self) -> np.ndarray:
        """Where the frames were seen from, ``[N, T, 3]``."""
        places = np.empty_like(self.commanded)
        for number, (video, walk) in enumerate(zip(self.videos, self.walks, strict=True)):
            for index, frame in enumerate(video):
                places[number, index] = found(frame, walk.places[index], walk.faces)
            self.progress(number + 1)
        return places

    @cached_property
    def asked_keys(self) -> np.ndarray:
        """Index in `KEYS` of each commanded motion, by its poses, [N, T - 1]: walls stop keys."""
        return np.stack([self._explained(places) for places in self.commanded])

    @cached_property
    def seen_keys(self) -> np.ndarray:
        """Index in `KEYS` of the key that explains each measured motion best, ``[N, T - 1]``."""
        return np.stack([self._explained(places) for places in self.found])

    def _explained(self, places: np.ndarray) -> np.ndarray:
        return np.array([
            min(range(len(KEYS)), key=partial(self._unlike, before, after))
            for before, after in zip(places, places[1:], strict=False)
        ])  # fmt: skip

    def _unlike(self, before: np.ndarray, after: np.ndarray, key: int) -> float:
        """How far a motion is from that of a key, in steps and turns."""
        expected = _after(before, KEYS[key], self.room)
        away = apart(after, expected)
        return float(np.hypot(away[0] / self.room.step, away[1] / self.room.turn))


def apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Distance of places and angle between yaws [degrees], ``[..., 2]``."""
    away = np.asarray(one) - np.asarray(other)
    yaw = np.abs((away[..., 2] + 180) % 360 - 180)
    return np.stack([np.hypot(away[..., 0], away[..., 1]), yaw], -1)


def _after(place: np.ndarray, keys: Keys, room: Room) -> tuple[float, float, float]:
    return place_of(step(placed(*place), keys, room.stride))
