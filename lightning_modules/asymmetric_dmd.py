"""Stage 3: asymmetric DMD with self-rollout (Self Forcing; Causal Forcing++)."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.fast_past import FastPast
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import FewSteps, Past, few_step_times, rollout
from lightning_modules.training.distribution_matching import DistributionMatching


class AsymmetricDMD(DistributionMatching):
    """A causal student (the generator) conditioned on its *own* rollout; bidirectional scores.

    Each step draws one exit step for all blocks (``exit_flag`` and ``same_step_across_blocks`` in
    Self Forcing's code), and one for the first block where that has another number of steps. Every
    block leaves its few-step sampler there: only that call carries gradient, and its ``x0`` becomes
    the context of later blocks. Reads prompts only.
    """

    chapter = "stage3"
    fields = ("text",)

    def generate(self, batch: dict[str, Any], random: Randomness) -> Tensor:
        """Self-rollout, truncated at the exit step."""
        times = few_step_times(self.sizes, self.few_steps, self.first_few_steps, self.shift)
        first_exit = exit_step = random.shared_integer("exit", self.few_steps)
        if self.first_few_steps != self.few_steps:
            first_exit = random.shared_integer("first_exit", self.first_few_steps)
        return rollout(
            self.past(batch),
            random.normal("noise", self.clip_shape),
            self.sizes,
            FewSteps(
                times,
                renoise=lambda step: random.normal(f"renoise/{step}", self.clip_shape),
                exits=[first_exit] + [exit_step] * (len(self.sizes) - 1),
            ),
        )

    def past(self, batch: dict[str, Any]) -> Past:
        """The student's own context; without gradient (fake-score steps) with fewer calls."""
        student, text = self.posed(self.student, batch), batch["text"]
        if torch.is_grad_enabled():
            return Past(student, text)
        return FastPast(student, text, frames=self.clip_shape[0], commit="fused")

    def velocity(
        self, net: nn.Module, x_t: Tensor, t: Tensor, text: Tensor, batch: dict[str, Any]
    ) -> Tensor:
        """Both scores are bidirectional."""
        return forcing.bidirectional(self.posed(net, batch), x_t, t, text)
