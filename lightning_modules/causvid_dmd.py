"""Distribution matching on answers to noised real clips (CausVid, arXiv 2412.07772)."""

from typing import Any

from torch import Tensor, nn

from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.flow import add_noise, time_grid, to_x0
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.training.distribution_matching import DistributionMatching


class CausVidDMD(DistributionMatching):
    """A causal student that answers each block of a *noised real* clip once; bidirectional scores.

    Each block has a noise level of its own from the few-step grid, under diffusion forcing. There
    is no rollout: the student never sees its own output, and the fake score is trained on answers
    to real clips (the exposure bias that Self Forcing removes).
    """

    chapter = "stage3"

    def generate(self, batch: dict[str, Any], random: Randomness) -> Tensor:
        """``G(x_t, t)`` of a clip noised block by block, in one call."""
        levels = time_grid(self.few_steps, self.shift)[:-1].float().to(self.device)
        step = random.integer("level", self.few_steps, (len(self.sizes),))
        t = levels[step][:, self.block_of_frame]
        x_t = add_noise(batch["latents"], random.normal("noise", self.clip_shape), t)
        student = self.posed(self.student, batch)
        v = forcing.diffusion_forcing(student, x_t, t, batch["text"], self.sizes)
        return to_x0(x_t, v, t)

    def velocity(
        self, net: nn.Module, x_t: Tensor, t: Tensor, text: Tensor, batch: dict[str, Any]
    ) -> Tensor:
        """Both scores are bidirectional."""
        return forcing.bidirectional(self.posed(net, batch), x_t, t, text)
