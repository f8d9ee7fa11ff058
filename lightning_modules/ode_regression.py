"""Stage 2: ODE distillation, regression onto stored trajectories of two kinds of teacher."""

from typing import Any

import torch
from torch import Tensor

from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.flow import to_x0
from lightning_modules.diffusion.losses import per_frame_regression, regression
from lightning_modules.training.stage import Stage


class _ODERegression(Stage):
    """``min E ||G_theta(x_{t_j}, t_j, c) - x_end||^2`` over the stored states of a teacher's ODE.

    Batches have ``trajectory`` ``[B, S + 1, F, C, H, W]``: S noisy states and the ODE's endpoint.

    Args:
        times: noise levels of the S stored states, read from the data, never recomputed.
    """

    def __init__(self, *, times: list[float], **stage: Any) -> None:
        super().__init__(**stage)
        self.register_buffer("times", torch.tensor(times, dtype=torch.float32), persistent=False)

    def state_at(self, trajectory: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The states at ``index`` ``[B, F]``: ``x_t`` ``[B, F, C, H, W]`` and ``t`` ``[B, F]``."""
        batch = torch.arange(len(trajectory), device=index.device)[:, None]
        frame = torch.arange(index.shape[1], device=index.device)[None, :]
        return trajectory[batch, index, frame], self.times[index]

    def learn(self, x_t: Tensor, v: Tensor, t: Tensor, end: Tensor) -> Tensor:
        """Unweighted regression in x0."""
        x0 = to_x0(x_t, v, t)
        loss = regression(x0, end)
        self.report("train/loss", loss)
        self.report_by_time(per_frame_regression(x0.detach(), end), t)
        return loss


class CausalODE(_ODERegression):
    """Causal ODE (Causal Forcing): the AR teacher's ODE, conditioned on clean context.

    All frames share ``t_j``. The context is the *real* clip ``latents`` on which the trajectory was
    conditioned; the target is the endpoint of the teacher's ODE, not the real frame.
    """

    past = "causal"
    fields = ("trajectory", "latents", "text")

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """One batch of causal ODE pairs."""
        random, trajectory, text = self.randomness(batch), batch["trajectory"], batch["text"]
        j = random.integer("time", len(self.times), (1,)).expand(-1, self.clip_shape[0])
        x_t, t = self.state_at(trajectory, j)
        student = self.posed(self.student, batch)
        v = forcing.teacher_forcing(student, x_t, t, text, self.sizes, clean=batch["latents"])
        return self.learn(x_t, v, t, trajectory[:, -1])


class SelfForcingODE(_ODERegression):
    """The ODE initialisation of CausVid and Self Forcing: a *bidirectional* teacher's ODE.

    Noise levels are independent per block, and the context is noisy (diffusion forcing). The
    teacher's endpoint depends on the noise of future frames, which the student cannot see, so the
    regression has an irreducible error.
    """

    past = "bidirectional"
    fields = ("trajectory", "text")

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """One batch of bidirectional ODE pairs."""
        random, trajectory, text = self.randomness(batch), batch["trajectory"], batch["text"]
        j = random.integer("time", len(self.times), (len(self.sizes),))
        x_t, t = self.state_at(trajectory, j[:, self.block_of_frame])
        student = self.posed(self.student, batch)
        v = forcing.diffusion_forcing(student, x_t, t, text, self.sizes)
        return self.learn(x_t, v, t, trajectory[:, -1])
