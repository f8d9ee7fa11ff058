"""Stage 3: asymmetric distribution matching with self-rollout (Self Forcing; Causal Forcing++)."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.fast_past import FastPast
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import FewSteps, Past, few_step_times, rollout
from lightning_modules.training.distribution_matching import DistributionMatching


class AsymmetricDMD(DistributionMatching):
    """A causal student, generating from its *own* past, under two bidirectional scores.

    Each step draws one exit for the first block and one for all others; every block leaves its
    sampler there, which is where its gradient comes from and what becomes the next block's past.
    Only prompts are read.
    """

    chapter = "stage3"
    fields = ("text",)

    def generate(self, batch: dict[str, Any], random: Randomness) -> Tensor:
        """Self rollout, truncated at the exit step."""
        times = few_step_times(self.sizes, self.few_steps, self.first_few_steps, self.shift)
        first_exit = random.shared_integer("first_exit", self.first_few_steps)
        exit_step = random.shared_integer("exit", self.few_steps)
        return rollout(
            self.past(batch["text"]),
            random.normal("noise", self.clip_shape),
            self.sizes,
            FewSteps(
                times,
                renoise=lambda step: random.normal(f"renoise/{step}", self.clip_shape),
                exits=[first_exit] + [exit_step] * (len(self.sizes) - 1),
            ),
        )

    def past(self, text: Tensor) -> Past:
        """The student's own; on the critic's turns, without gradient, with fewer calls."""
        if torch.is_grad_enabled():
            return Past(self.student, text)
        return FastPast(self.student, text, frames=self.clip_shape[0], commit="fused")

    def velocity(
        self, net: nn.Module, x_t: Tensor, t: Tensor, text: Tensor, batch: dict[str, Any]
    ) -> Tensor:
        """The scores see the whole clip at once."""
        return forcing.bidirectional(net, x_t, t, text)
