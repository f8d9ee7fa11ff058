"""Flow matching: the base class of the stages that train a diffusion model (base and Stage 1)."""

from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_modules.diffusion.flow import add_noise, training_weight, velocity
from lightning_modules.diffusion.losses import per_frame_regression
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.ranges import NonNegative, SolverSteps, UnitInterval
from lightning_modules.training.stage import Stage


class FlowMatching(Stage):
    """``min E w(t) ||v_theta(x_t, t, c | context) - (eps - x0)||^2``, mean over batch and frames.

    A subclass defines how times are drawn and what the context is.

    Args:
        text_dropout: probability of replacing the prompt by the negative one, to train the
            unconditional branch of CFG. Published: 0, because Wan's weights already have one.
        intervals: Euler steps of the sampler.
        guidance: CFG scale of the sampler, 1 = none.
        loss_weight: ``bell``, Wan's w(t), zero at pure noise (`training_weight`); ``none``: w = 1,
            for worlds whose control is decided there.
    """

    def __init__(
        self,
        *,
        text_dropout: UnitInterval,
        intervals: SolverSteps,
        guidance: NonNegative,
        loss_weight: Literal["bell", "none"] = "bell",
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.text_dropout, self.intervals, self.guidance = text_dropout, intervals, guidance
        self.loss_weight = loss_weight

    @abstractmethod
    def draw_times(self, random: Randomness) -> Tensor:
        """Noise levels ``[B, F]``."""

    @abstractmethod
    def velocity(self, net: Any, x_t: Tensor, t: Tensor, text: Tensor, x0: Tensor) -> Tensor:
        """The velocity of ``net``, the student, at ``x_t`` under this kind of forcing."""

    def weight(self, t: Tensor) -> Tensor:
        """``w(t)``, as t."""
        bell = self.loss_weight == "bell"
        return training_weight(t, self.shift) if bell else torch.ones_like(t)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """One batch of clean clips; returns the weighted loss."""
        random, x0 = self.randomness(batch), batch["latents"]
        text = self.drop_text(random, batch["text"], self.text_dropout)
        t = self.draw_times(random)
        eps = random.normal("noise", x0.shape[1:])

        student = self.posed(self.student, batch)
        v = self.velocity(student, add_noise(x0, eps, t), t, text, x0)
        per_frame_loss = per_frame_regression(v, velocity(x0, eps))
        loss = (self.weight(t) * per_frame_loss).mean()

        self.report("train/loss", loss)
        self.report_by_time(per_frame_loss, t)
        return loss
