"""Real clips through the eyes of the probe: what clips are judged beside, computed once."""

from functools import cached_property

import numpy as np

from experiments.metrics.distances import Manifold
from experiments.worlds.digits.appearance import background, noise, sharpness
from experiments.worlds.digits.probe_network import ProbeNetwork, Readings
from experiments.worlds.digits.trajectory import Path, World, follow

MANIFOLD_CLIPS = 512  # clips whose every second frame spans the real manifold (2,048 frames)


class Reference:
    """Real clips of one world; many sets of clips may be judged beside one of these.

    Args:
        clips: uint8 [M, T, 32, 32, 1].
        probe: the gated network.
        world: numbers of the law.
        fps: frames a second.
    """

    def __init__(self, clips: np.ndarray, probe: ProbeNetwork, world: World, fps: float) -> None:
        self.clips, self.probe, self.world, self.fps = clips, probe, world, fps

    @cached_property
    def readings(self) -> Readings:
        """The probe on the real clips."""
        return self.probe.read(self.clips)

    @cached_property
    def path(self) -> Path:
        """Nearest lawful path of each real clip."""
        return follow(self.readings.position, self.world)

    @cached_property
    def manifold(self) -> Manifold:
        """Where real frames lie in feature space."""
        features = self.readings.features[:MANIFOLD_CLIPS, ::2]
        return Manifold(features.reshape(-1, features.shape[-1]))

    @cached_property
    def appearance(self) -> tuple[float, float]:
        """Geometric mean sharpness and mean noise of real frames."""
        sharp = sharpness(self.clips)
        mask = background(self.clips, self.readings.position)
        return (
            float(np.exp(np.log(np.maximum(sharp, 1e-6)).mean())),
            float(noise(self.clips, mask).mean()),
        )
