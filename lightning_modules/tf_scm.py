"""Stage 2: continuous-time consistency under teacher forcing (TF-sCM of Causal-rCM)."""

from typing import Any

import torch
from torch import Tensor

from lightning_modules.diffusion.flow import add_noise, per_frame
from lightning_modules.diffusion.losses import per_frame_regression, regression
from lightning_modules.ranges import NonNegative, NonNegativeInt
from lightning_modules.training.consistency import ContinuousConsistency


class TFsCM(ContinuousConsistency):
    """``min E ||v_theta - sg(v_theta + h / (rms(h) + c))||^2`` (arXiv 2606.25473, Eq. 15-19,
    with the norm of its code where Eq. 18 prints its square).

    ``h = d/dt G_theta(x_t, t) = v_T - v_theta - t dv_theta/dt`` along the teacher's guided ODE; it
    is zero everywhere exactly for the flow map. Only the first ``v_theta`` has gradient.

    Args:
        tangent_warmup_steps: in which the term ``t dv_theta/dt`` rises from 0; published 1000.
        tangent_floor: ``c``, in units of the velocity; published 0.1 beside the L2 norm of a clip,
            which for Wan is 7e-5 beside the root mean square.
    """

    def __init__(
        self,
        *,
        tangent_warmup_steps: NonNegativeInt,
        tangent_floor: NonNegative,
        **consistency: Any,
    ) -> None:
        super().__init__(**consistency)
        self.tangent_warmup_steps, self.tangent_floor = tangent_warmup_steps, tangent_floor

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """One batch of clean clips."""
        random, x0, text = self.randomness(batch), batch["latents"], batch["text"]
        t = self.draw_levels(random, 1).expand(-1, self.clip_shape[0])
        x_t = add_noise(x0, random.normal("noise", self.clip_shape), t)

        def v(x: Tensor, t: Tensor) -> Tensor:
            return self.velocity(self.student, x, t, batch, text)

        prediction = v(x_t, t)
        with torch.no_grad():
            v_teacher, now = self.teacher_velocity(x_t, t, batch), prediction.detach()
            change = per_frame(t) * self.change(v, x_t, t, v_teacher, now)
            h = v_teacher - now - self.warmed_up() * change
            size = h.square().mean(dim=(1, 2, 3, 4), keepdim=True).sqrt()
            target = now + h / (size + self.tangent_floor)
        self.report("train/loss", h.square().mean())
        self.report("train/tangent", change.norm() / (v_teacher - now).norm())
        self.report_by_time(per_frame_regression(h, torch.zeros_like(h)), t)
        return regression(prediction, target)

    def warmed_up(self) -> float:
        """The factor of the tangent at this step, 0 to 1."""
        if not self.tangent_warmup_steps:
            return 1.0
        return min(1.0, self.global_step / self.tangent_warmup_steps)
