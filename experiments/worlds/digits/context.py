"""Intermediate results that the metrics of a set of clips share, computed once and on demand.

Arrays: videos uint8 [N, T, H, W, 1]; per-frame values [N, T]; per-clip values [N].
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from experiments.metrics import motion
from experiments.metrics.statistics import resample_weights
from experiments.worlds.digits import appearance
from experiments.worlds.digits.probe_network import Readings
from experiments.worlds.digits.reference import Reference
from experiments.worlds.digits.trajectory import HEADINGS, SPEEDS, Path, follow

SET_RESAMPLES = 100  # of set-wise metrics; only their standard deviation is used


@dataclass(frozen=True)
class Wanted:
    """Attributes in N captions: digit int [N], heading int [N] (-1 still), speed int [N]."""

    digit: np.ndarray
    heading: np.ndarray
    speed: np.ndarray

    @classmethod
    def of(cls, attributes: list[dict[str, Any]]) -> "Wanted":
        """From samples' `attributes` {digit, direction, speed}.

        Raises:
            ValueError: an attribute is missing or unknown; names the clip.
        """
        rows = []
        for number, a in enumerate(attributes):
            try:
                direction = a["direction"]
                heading = -1 if direction is None else HEADINGS.index(direction)
                rows.append((int(a["digit"]), heading, SPEEDS.index(a["speed"])))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"clip {number}: attributes {a!r} are not those of the tiny world "
                    "(digit 0..9, direction, speed): sample from its prompts"
                ) from error
        return cls(*(np.array(column) for column in zip(*rows, strict=True)))

    @property
    def moving(self) -> np.ndarray:
        """Bool [N]."""
        return self.speed > 0


class View:
    """Probe features and measurements of generated clips, with a real reference.

    Args:
        videos: clips to judge, uint8 [N, T, 32, 32, 1].
        attributes: of each caption.
        reference: real clips, disjoint from `videos`, with the probe that reads both.
        calibration: floors, ceilings and bounds (`calibration`), or None while calibrating.
        seed: of the bootstrap.
    """

    def __init__(
        self,
        videos: np.ndarray,
        attributes: list[dict[str, Any]],
        reference: Reference,
        calibration: dict[str, Any] | None,
        seed: int,
    ) -> None:
        if len(videos) != len(attributes) or videos.shape[1:] != reference.clips.shape[1:]:
            raise ValueError(
                f"cannot compare clips {list(videos.shape)} ({len(attributes)} captions) with real "
                f"clips {list(reference.clips.shape)}: make both from the same world"
            )
        self.videos, self.reference = videos, reference
        self.calibration, self.seed = calibration, seed
        self.wanted = Wanted.of(attributes)

    @property
    def clips(self) -> int:
        """N."""
        return len(self.videos)

    @cached_property
    def readings(self) -> Readings:
        """Outputs of the probe for the generated clips."""
        return self.reference.probe.read(self.videos)

    @cached_property
    def path(self) -> Path:
        """Nearest admissible path of each clip."""
        return follow(self.readings.position, self.reference.world)

    @cached_property
    def weights(self) -> np.ndarray:
        """Bootstrap counts [R, N] of set-wise metrics."""
        return resample_weights(self.clips, SET_RESAMPLES, self.seed)

    @cached_property
    def on_manifold(self) -> np.ndarray:
        """Bool [N, T]: the frame lies on the real manifold (k-NN) and shows one digit."""
        features = self.readings.features
        near = self.reference.manifold.within(features.reshape(-1, features.shape[-1])).any(axis=1)
        return near.reshape(features.shape[:2]) & (self.readings.presence > 0.5)

    @cached_property
    def digit_right(self) -> np.ndarray:
        """Bool [N, T]: the frame shows the digit that the caption names."""
        read = self.readings.classes.argmax(axis=-1)
        return (read == self.wanted.digit[:, None]) & (self.readings.presence > 0.5)

    @cached_property
    def rule(self) -> motion.DynamicRule:
        """VBench's dynamic rule for these clips."""
        return motion.DynamicRule.of(*self.videos.shape[1:4], self.reference.fps)

    @cached_property
    def magnitudes(self) -> np.ndarray:
        """Flow of neighbouring kept frames, px/frame."""
        return motion.fastest(self.videos[:, :: self.rule.interval])

    @cached_property
    def mask(self) -> np.ndarray:
        """Background pixels."""
        return appearance.background(self.videos, self.readings.position)

    @cached_property
    def sharpness(self) -> np.ndarray:
        """Variance of the Laplacian, [N, T]."""
        return appearance.sharpness(self.videos)

    @cached_property
    def noise(self) -> np.ndarray:
        """Gray levels in the background, [N, T]."""
        return appearance.noise(self.videos, self.mask)


def pairs(features: np.ndarray) -> np.ndarray:
    """Features of neighbouring frames side by side, [N, T-1, 2D]."""
    return np.concatenate([features[:, :-1], features[:, 1:]], axis=-1)
