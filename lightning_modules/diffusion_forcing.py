"""Diffusion forcing: the alternative Stage 1, conditioned on noisy context."""

from typing import Any

from torch import Tensor

from lightning_modules.diffusion import forcing
from lightning_modules.teacher_forcing import TeacherForcing


class DiffusionForcing(TeacherForcing):
    """Flow matching with ``t^i`` per block, where block i sees ``x_t^{<=i}`` (CausVid's layout).

    Sampling conditions on clean blocks, which training rarely sees: the train-test mismatch that
    teacher forcing removes.
    """

    def velocity(self, net: Any, x_t: Tensor, t: Tensor, text: Tensor, x0: Tensor) -> Tensor:
        """Each block conditioned on the noisy blocks before it."""
        return forcing.diffusion_forcing(net, x_t, t, text, self.sizes)
