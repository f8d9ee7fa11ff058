"""Stage 2: mean flow under teacher forcing (TF-MeanFlow of Causal-rCM)."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.diffusion.flow import add_noise, per_frame
from lightning_modules.diffusion.losses import per_frame_regression
from lightning_modules.networks.wan.two_time import with_second_time
from lightning_modules.ranges import Positive, UnitInterval
from lightning_modules.training.consistency import ContinuousConsistency


class TFMeanFlow(ContinuousConsistency):
    """``min E m / sg(m + c)``, ``m = ||u(x_t, t, r | x0^{<i}) - sg(v_T - (t - r) du/dt)||^2``.

    ``m`` is the mean over a clip's numbers (arXiv 2606.25473, Eq. 3-4; MeanFlow, 2505.13447), ``u``
    the mean velocity between t and r <= t of the teacher's guided ODE; ``du/dt`` is taken along it
    while r stands still. The student gets a second time, of which it is silent until trained. At
    r = 0 it is a consistency model: so it is sampled and handed on.

    Args:
        student: a network that offers ``with_second_time``.
        weight_floor: ``c``, in units of the squared velocity.
        r_equals_t, r_is_zero: shares of clips (`ContinuousConsistency.draw_spans`).

    Raises:
        ValueError: a student without second time; shares of more than all clips.
    """

    two_times = takes_two_times = True

    def __init__(
        self,
        *,
        student: nn.Module,
        weight_floor: Positive,
        r_equals_t: UnitInterval,
        r_is_zero: UnitInterval,
        **consistency: Any,
    ) -> None:
        if r_equals_t + r_is_zero > 1:
            raise ValueError(
                f"stage.r_is_zero: {r_is_zero}, but with stage.r_equals_t: {r_equals_t} that is"
                " more than all clips; lower one"
            )
        super().__init__(student=with_second_time(student), **consistency)
        self.weight_floor, self.r_equals_t, self.r_is_zero = weight_floor, r_equals_t, r_is_zero

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """One batch of clean clips."""
        random, x0, text = self.randomness(batch), batch["latents"], batch["text"]
        t, r = self.draw_spans(random, self.r_equals_t, self.r_is_zero)
        x_t = add_noise(x0, random.normal("noise", self.clip_shape), t)

        def u(x: Tensor, t: Tensor) -> Tensor:
            until = torch.minimum(r, t)  # a difference may look behind r
            return self.velocity(self.student, x, t, batch, text, until)

        prediction = u(x_t, t)
        with torch.no_grad():
            v_teacher, now = self.teacher_velocity(x_t, t, batch), prediction.detach()
            change = self.change(u, x_t, t, v_teacher, now)
            target = v_teacher - per_frame(t - r) * change
        error = per_frame_regression(prediction, target)
        per_clip = error.mean(dim=1)
        self.report("train/loss", per_clip.mean())
        self.report_by_time(error, t)
        return (per_clip / (per_clip.detach() + self.weight_floor)).mean()
