"""Stage 2: causal DMD, distribution matching under teacher forcing (Causal Forcing++, Eq. 7)."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.flow import add_noise, time_grid, to_x0
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.training.distribution_matching import DistributionMatching


class CausalDMD(DistributionMatching):
    """DMD whose student, real and fake score are all causal, on clean context ``x0^{<i}`` (Eq. 7).

    The real score is the AR teacher; the fake score starts from the network of Stage 1. All frames
    are generated in parallel from noise, and the few-step sampler exits at a random step.
    """

    def generate(self, batch: dict[str, Any], random: Randomness) -> Tensor:
        """Few-step sampling of every block on clean context; gradient at the exit step only."""
        times = time_grid(self.few_steps, self.shift)[:-1].float()
        exit_step = random.shared_integer("exit", self.few_steps)
        x = x0 = random.normal("noise", self.clip_shape)
        for step in range(exit_step + 1):
            t = times[step].to(x.device).expand(x.shape[:2])
            with torch.set_grad_enabled(torch.is_grad_enabled() and step == exit_step):
                if step > 0:
                    x = add_noise(x0, random.normal(f"renoise/{step}", self.clip_shape), t)
                x0 = to_x0(x, self.velocity(self.student, x, t, batch["text"], batch), t)
        return x0

    def velocity(
        self, net: nn.Module, x_t: Tensor, t: Tensor, text: Tensor, batch: dict[str, Any]
    ) -> Tensor:
        """Teacher forcing: conditioned on the clean real clip."""
        net = self.posed(net, batch)
        return forcing.teacher_forcing(net, x_t, t, text, self.sizes, clean=batch["latents"])
