"""Consistency distillation from an AR teacher under teacher forcing: what its stages share."""

from typing import Any

from torch import Tensor, nn

from lightning_modules.diffusion import forcing
from lightning_modules.ranges import NonNegative
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
