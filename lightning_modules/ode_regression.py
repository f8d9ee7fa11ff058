"""Stage 2 by ODE distillation: one regression onto stored trajectories, two kinds of past."""

from typing import Any

import torch
from torch import Tensor

from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.flow import to_x0
from lightning_modules.diffusion.losses import per_frame_regression, regression
from lightning_modules.training.stage import Stage


class ODERegression(Stage):
    """``min E ||G_theta(x_{t_j}, t_j, c) - x_end||^2`` over the stored points of a teacher's ODE.

    Batches carry ``trajectory`` ``[B, S + 1, F, C, H, W]``: S noisy states and the ODE's end.

    Args:
        times: the S noise levels the states were stored at; the data's own, never re-derived.
    """

    def __init__(self, *, times: list[float], **stage: Any) -> None:
        super().__init__(**stage)
        self.register_buffer("times", torch.tensor(times, dtype=torch.float32), persistent=False)

    def state_at(self, trajectory: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """What ``index`` ``[B, F]`` points at: ``x_t`` ``[B, F, C, H, W]`` and ``t`` ``[B, F]``."""
        batch = torch.arange(len(trajectory), device=index.device)[:, None]
        frame = torch.arange(index.shape[1], device=index.device)[None, :]
        return trajectory[batch, index, frame], self.times[index]

    def learn(self, x_t: Tensor, v: Tensor, t: Tensor, end: Tensor) -> Tensor:
        """The regression in x0, unweighted."""
        x0 = to_x0(x_t, v, t)
        loss = regression(x0, end)
        self.report("train/loss", loss)
        self.report_by_time(per_frame_regression(x0.detach(), end), t)
        return loss


class CausalODE(ODERegression):
    """Causal ODE (Causal Forcing): the AR teacher's ODE, conditioned on the true past.

    All frames share ``t_j``; the past is the *real* clip ``latents`` that the trajectory was
    generated beside; the target is the teacher's end, not the real frame.
    """

    past = "causal"
    fields = ("trajectory", "latents", "text")

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """One batch of causal pairs."""
        random, trajectory, text = self.randomness(batch), batch["trajectory"], batch["text"]
        j = random.integer("time", len(self.times), (1,)).expand(-1, self.clip_shape[0])
        x_t, t = self.state_at(trajectory, j)
        v = forcing.teacher_forcing(self.student, x_t, t, text, self.sizes, clean=batch["latents"])
        return self.learn(x_t, v, t, trajectory[:, -1])


class SelfForcingODE(ODERegression):
    """The initialisation of CausVid and Self Forcing: a *bidirectional* teacher's ODE.

    Blocks are noisy independently and see each other so (diffusion forcing). The teacher's end
    depends on noise of future frames that the student cannot see, hence the regression's floor.
    """

    past = "bidirectional"
    fields = ("trajectory", "text")

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """One batch of bidirectional pairs."""
        random, trajectory, text = self.randomness(batch), batch["trajectory"], batch["text"]
        j = random.integer("time", len(self.times), (len(self.sizes),))
        x_t, t = self.state_at(trajectory, j[:, self.block_of_frame])
        v = forcing.diffusion_forcing(self.student, x_t, t, text, self.sizes)
        return self.learn(x_t, v, t, trajectory[:, -1])
