"""Consistency distillation from an AR teacher under teacher forcing: what its stages share."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.flow import Velocity
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.tangents import TANGENTS, Tangent
from lightning_modules.ranges import Finite, NoiseLevel, NonNegative, Positive
from lightning_modules.training.stage import Stage


class Consistency(Stage):
    """A student that learns the flow map of the AR teacher's guided ODE on clean context.

    Args:
        teacher: the frozen AR teacher of Stage 1.
        guidance: CFG scale of the teacher's velocity; published 3.
    """

    def __init__(self, *, teacher: nn.Module, guidance: NonNegative, **stage: Any) -> None:
        super().__init__(**stage)
        self.freeze("teacher", teacher)
        self.guidance = guidance

    def velocity(
        self,
        net: nn.Module,
        x: Tensor,
        t: Tensor,
        batch: dict[str, Any],
        text: Tensor,
        until: Tensor | None = None,
    ) -> Tensor:
        """``v(x, t | x0^{<i})`` for all blocks; with ``until`` of a network of two times."""
        net, clean = self.posed(net, batch), batch["latents"]
        return forcing.teacher_forcing(net, x, t, text, self.sizes, clean=clean, until=until)

    def teacher_velocity(self, x: Tensor, t: Tensor, batch: dict[str, Any]) -> Tensor:
        """``v_T``, the slope of the teacher's guided ODE."""
        return forcing.guided(
            lambda text: self.velocity(self.teacher, x, t, batch, text),
            batch["text"],
            self.negative,
            self.guidance,
        )


class ContinuousConsistency(Consistency):
    """Consistency at any time: it asks how the student changes along the teacher's guided ODE.

    Args:
        tangent: how ``dv/dt`` is taken (``diffusion/tangents.py``); published ``exact``.
        tangent_step: of the differences, in units of t.
        time_mean, time_std: of logit(t), normal; published -0.8 and 1.6.
    """

    def __init__(
        self,
        *,
        tangent: Tangent,
        tangent_step: NoiseLevel,
        time_mean: Finite,
        time_std: Positive,
        **consistency: Any,
    ) -> None:
        super().__init__(**consistency)
        self.tangent, self.tangent_step = TANGENTS[tangent], tangent_step
        self.forward_mode = "stage.tangent" if tangent == "exact" else ""
        self.time_mean, self.time_std = time_mean, time_std

    def draw_levels(self, random: Randomness, count: int) -> Tensor:
        """Noise levels ``[B, count]`` of a batch's clips."""
        return (self.time_mean + self.time_std * random.normal("time", (count,))).sigmoid()

    def draw_spans(
        self, random: Randomness, r_equals_t: float, r_is_zero: float
    ) -> tuple[Tensor, Tensor]:
        """``t`` and ``r <= t`` of a mean flow, ``[B, F]``, the same for all frames of a clip.

        Args:
            random: of the batch.
            r_equals_t: share of clips with r = t, whose regression is that of the velocity.
            r_is_zero: share of clips with r = 0, the jumps to data that the sampler makes.
        """
        r, t = self.draw_levels(random, 2).sort(dim=1).values.split(1, dim=1)
        share = random.uniform("span", (1,))
        r = torch.where(share < r_equals_t, t, r)
        r = torch.where(share >= 1 - r_is_zero, torch.zeros_like(r), r)
        return t.expand(-1, self.clip_shape[0]), r.expand(-1, self.clip_shape[0])

    def change(self, v: Velocity, x: Tensor, t: Tensor, v_teacher: Tensor, now: Tensor) -> Tensor:
        """``dv/dt`` where ``dx/dt = v_teacher``; ``now`` is ``v(x, t)``."""
        return self.tangent(v, x, t, v_teacher, now, self.tangent_step)
