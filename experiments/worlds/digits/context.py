"""Intermediate results that the metrics of a set of clips share, computed once and on demand.

Arrays: videos uint8 [N, T, H, W, 1]; per-frame values [N, T]; per-clip values [N].
"""

from functools import cached_property
from typing import Any

import numpy as np

from experiments.metrics import motion
from experiments.metrics.statistics import resample_weights
from experiments.worlds.digits import appearance
from experiments.worlds.digits.probe_network import Readings
from experiments.worlds.digits.reference import Reference
from experiments.worlds.digits.trajectory import Path, follow
from experiments.worlds.digits.wanted import Wanted

SET_RESAMPLES = 100  # of set-wise metrics; only their standard deviation is used


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
    def sharpness(self) -> np.ndarray:
        """Variance of the Laplacian, [N, T]."""
        return appearance.sharpness(self.videos)

    @cached_property
    def distance(self) -> tuple[float, np.ndarray]:
        """Frechet joint distance of transitions to real ones, and its resamples [R]."""
        return self.reference.law.distance(self.readings, self.wanted, self.weights)
