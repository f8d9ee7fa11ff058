"""The base model: bidirectional flow matching. At Wan's scale its place is taken by Wan itself."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.flow import time_grid
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import solve
from lightning_modules.training.flow_matching import FlowMatching
from lightning_modules.training.stage import NO_CAMERAS


class Bidirectional(FlowMatching):
    """Flow matching with one ``t`` per clip and full attention."""

    chapter = "base"

    def draw_times(self, random: Randomness) -> Tensor:
        """One time for the whole clip."""
        return self.times_per_sample(random)

    def velocity(self, net: Any, x_t: Tensor, t: Tensor, text: Tensor, x0: Tensor) -> Tensor:
        """Full attention over all frames."""
        return forcing.bidirectional(net, x_t, t, text)

    @torch.no_grad()
    def sample(
        self, text: Tensor, keys: Sequence[str], cameras: Mapping[str, Tensor] = NO_CAMERAS
    ) -> Tensor:
        """All frames jointly, by the guided ODE."""
        noise = Randomness(self.seed, 0, keys, self.device).normal("noise", self.clip_shape)
        grid = time_grid(self.intervals, self.shift).float().to(self.device)
        student = self.posed(self.evaluated, cameras)
        v = forcing.bidirectional_ode(student, text, self.negative, self.guidance)
        return solve(v, noise, grid)[0]
