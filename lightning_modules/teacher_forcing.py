"""Stage 1: autoregressive diffusion by teacher forcing (Causal Forcing++, sec. 3.1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.flow import time_grid
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import Past, Solve, rollout
from lightning_modules.training.flow_matching import FlowMatching
from lightning_modules.training.stage import NO_CAMERAS


class TeacherForcing(FlowMatching):
    """``min E w(t) ||v_theta(x_t^i, t^i, c | x0^{<i}) - (eps^i - x0^i)||^2``, ``t^i`` per block.

    Conditioned on the clean context of strictly earlier blocks, all blocks in one forward pass.
    """

    chapter = "stage1"

    def draw_times(self, random: Randomness) -> Tensor:
        """An independent time for every block."""
        return self.times_per_block(random)

    def velocity(self, net: Any, x_t: Tensor, t: Tensor, text: Tensor, x0: Tensor) -> Tensor:
        """Each block conditioned on the clean blocks before it."""
        return forcing.teacher_forcing(net, x_t, t, text, self.sizes, clean=x0)

    @torch.no_grad()
    def sample(
        self, text: Tensor, keys: Sequence[str], cameras: Mapping[str, Tensor] = NO_CAMERAS
    ) -> Tensor:
        """Block by block by the guided ODE, conditioned on its own generated context."""
        noise = Randomness(self.seed, 0, keys, self.device).normal("noise", self.clip_shape)
        student = self.posed(self.evaluated, cameras)
        past = Past(student, text, self.negative, self.guidance)
        return rollout(past, noise, self.sizes, Solve(time_grid(self.intervals, self.shift)))
