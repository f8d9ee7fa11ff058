"""Stage 2: discrete-time consistency under teacher forcing (TF-dCM of Causal-rCM)."""

from typing import Any

import torch
from torch import Tensor

from lightning_modules.diffusion.flow import add_noise, euler, shift, to_x0
from lightning_modules.diffusion.losses import per_frame_regression, regression
from lightning_modules.ranges import Positive, SolverSteps
from lightning_modules.training.consistency import Consistency


class TFdCM(Consistency):
    """``min E ||G_theta(x_t, t | x0^{<i}) - sg G_theta(x_t', t' | x0^{<i})||^2`` (arXiv 2606.25473,
    Eq. 10).

    Times are continuous: ``u ~ U[0, 1 - 1/N]``, one per clip, ``t = s(1 - u)`` and
    ``t' = s(1 - u - 1/N)``; ``x_t'`` is one Euler step of the teacher's guided ODE away. The target
    is the student itself. Causal CD (``causal_cd.py``) has a grid and an EMA target.

    Args:
        intervals: ``N``; published 48.
        time_shift: of ``s``, apart from the sampler's; published 3.
    """

    def __init__(self, *, intervals: SolverSteps, time_shift: Positive, **consistency: Any) -> None:
        super().__init__(**consistency)
        self.intervals, self.time_shift = intervals, time_shift

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """One batch of clean clips."""
        random, x0, text = self.randomness(batch), batch["latents"], batch["text"]
        u = random.uniform("time", (1,)) * (1 - 1 / self.intervals)
        t, t_next = (
            shift(level, self.time_shift).clamp(min=0).expand(-1, self.clip_shape[0])
            for level in (1 - u, 1 - u - 1 / self.intervals)
        )
        x_t = add_noise(x0, random.normal("noise", self.clip_shape), t)
        with torch.no_grad():
            x_next = euler(lambda x, t: self.teacher_velocity(x, t, batch), x_t, t, t_next)
            v_next = self.velocity(self.student, x_next, t_next, batch, text)
            target = to_x0(x_next, v_next, t_next)
        prediction = to_x0(x_t, self.velocity(self.student, x_t, t, batch, text), t)
        loss = regression(prediction, target)
        self.report("train/loss", loss)
        self.report_by_time(per_frame_regression(prediction.detach(), target), t)
        return loss
