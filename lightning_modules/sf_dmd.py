"""Stage 3 in the regime of Causal-rCM: self-forcing DMD (SF-DMD, arXiv 2606.25473)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.asymmetric_dmd import AsymmetricDMD
from lightning_modules.diffusion.noisy_past import NoisyPast, require_noisy_context
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import FewSteps, block_times, few_step_times, rollout
from lightning_modules.ranges import NoiseLevel, NonNegativeInt
from lightning_modules.training.stage import NO_CAMERAS


class SFDMD(AsymmetricDMD):
    """Asymmetric DMD whose exits come in turn instead of by chance.

    The n-th update of a network leaves block ``i`` after ``min(n mod N_1 + 1, N_i)`` of its ``N_i``
    steps; the student and the fake score count their own updates.

    Args:
        levels: noise levels of each block, the last ones repeated; ``[]``: the shifted grids of
            ``first_few_steps`` and ``few_steps``, which with shift 5 are the published ones.
        noisy_from: index of the first block that stays in the context as noisy as it was last seen
            (``noisy_past.py``), published 1; None: none.

    Raises:
        ValueError: levels that are no schedule; a noisy block of one step, which would be noise; a
            first noisy block that the clip does not have.
    """

    def __init__(
        self, *, levels: list[list[NoiseLevel]], noisy_from: NonNegativeInt | None, **stage: Any
    ) -> None:
        super().__init__(**stage)
        self.noisy_from = len(self.sizes) if noisy_from is None else noisy_from
        grids = few_step_times(self.sizes, self.few_steps, self.first_few_steps, self.shift)
        self.times = block_times(self.sizes, levels, "stage.levels") if levels else grids
        require_noisy_context(list(map(len, self.times)), noisy_from, "stage.noisy_from")

    def generate(self, batch: dict[str, Any], random: Randomness) -> Tensor:
        """Self-rollout, truncated at the exit whose turn it is."""
        exit_step = random.in_turn("exit", len(self.times[0]), self.earlier_updates())
        exits = [min(exit_step, len(times) - 1) for times in self.times]
        return self.rolled_out(self.posed(self.student, batch), batch["text"], random, exits)

    @torch.no_grad()
    def sample(
        self, text: Tensor, keys: Sequence[str], cameras: Mapping[str, Tensor] = NO_CAMERAS
    ) -> Tensor:
        """As it is trained: by its schedule, with its context."""
        random = Randomness(self.seed, 0, keys, self.device)
        return self.rolled_out(self.posed(self.evaluated, cameras), text, random)

    def rolled_out(
        self, net: nn.Module, text: Tensor, random: Randomness, exits: list[int] | None = None
    ) -> Tensor:
        """A network's clips on its own context."""
        draw = partial(random.normal, shape=self.clip_shape)
        how = {"sizes": self.sizes, "times": self.times, "eps": draw("context")}
        past = NoisyPast(net, text, **how, noisy_from=self.noisy_from)
        sampler = FewSteps(self.times, lambda step: draw(f"renoise/{step}"), exits)
        return rollout(past, draw("noise"), self.sizes, sampler)
