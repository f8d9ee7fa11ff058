"""Stage 2: causal consistency distillation, the method of Causal Forcing++ (Eq. 3)."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.flow import SOLVERS, Solver, add_noise, time_grid, to_x0
from lightning_modules.diffusion.losses import per_frame_regression, regression
from lightning_modules.ranges import Decay, NonNegative, PositiveInt, SolverSteps
from lightning_modules.training.ema import EMA
from lightning_modules.training.stage import Stage


class CausalCD(Stage):
    """``min E ||G_theta(x_t, t | x0^{<i}) - sg G_theta-(x_t', t' | x0^{<i})||^2`` (Eq. 3).

    ``x_t`` is the noised real clip, ``x_t'`` the result of ``steps_per_link`` steps of the AR
    teacher's guided ODE along a grid of ``intervals``, and ``theta-`` an EMA of ``theta``, updated
    after every optimizer step. No trajectory is generated or stored.

    An error of the student at a link is handed on to all links above it, so with a good solution of
    the ODE fewer, longer links sum up less of it; each costs more calls of the teacher.

    The last pair ends at t' = 0, where ``G(x, 0) = x`` holds by construction: it anchors the target
    at data. The published code omits this pair (``terminal_pair: false``).

    Args:
        teacher: the frozen AR teacher of Stage 1.
        intervals: of the teacher's shifted grid; published 48 (``discrete_cd_N``).
        steps_per_link: of the teacher between ``t`` and ``t'``; published 1. Divides ``intervals``.
        solver: of the teacher's step, ``euler`` (published) or ``heun``.
        guidance: CFG scale of the teacher's step; published 3.
        decay: EMA decay of theta-; published 0.99.
        terminal_pair: include the pair that ends at t' = 0.

    Raises:
        ValueError: ``steps_per_link`` does not divide ``intervals``, or no pair of links is left.
    """

    def __init__(
        self,
        *,
        teacher: nn.Module,
        intervals: SolverSteps,
        solver: Solver,
        guidance: NonNegative,
        decay: Decay,
        terminal_pair: bool,
        steps_per_link: PositiveInt = 1,
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.freeze("teacher", teacher)
        self.target = EMA(self.student, decay)
        self.guidance, self.advance = guidance, SOLVERS[solver]
        if intervals % steps_per_link:
            raise ValueError(
                f"stage.steps_per_link: {steps_per_link} does not divide the {intervals}"
                " stage.intervals; choose a divisor"
            )
        self.steps_per_link = steps_per_link
        links = intervals // steps_per_link
        self.pairs = links if terminal_pair else links - 1
        if self.pairs < 1:
            raise ValueError("stage.intervals: one link is only the terminal pair; use two or more")
        grid = time_grid(intervals, self.shift).float()
        self.register_buffer("grid", grid, persistent=False)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """One batch of clean clips."""
        random, x0, text = self.randomness(batch), batch["latents"], batch["text"]
        link = random.integer("time", self.pairs, (1,)).expand(-1, self.clip_shape[0])
        k = link * self.steps_per_link
        t, t_next = self.grid[k], self.grid[k + self.steps_per_link]
        x_t = add_noise(x0, random.normal("noise", self.clip_shape), t)

        def v(net: nn.Module, x: Tensor, t: Tensor, text: Tensor = text) -> Tensor:
            posed = self.posed(net, batch)
            return forcing.teacher_forcing(posed, x, t, text, self.sizes, clean=x0)

        def teacher(x: Tensor, t: Tensor) -> Tensor:
            return forcing.guided(
                lambda c: v(self.teacher, x, t, c), text, self.negative, self.guidance
            )

        with torch.no_grad():
            x_next = x_t
            for step in range(self.steps_per_link):
                x_next = self.advance(teacher, x_next, self.grid[k + step], self.grid[k + step + 1])
            target = to_x0(x_next, v(self.target.module, x_next, t_next), t_next)

        prediction = to_x0(x_t, v(self.student, x_t, t), t)
        loss = regression(prediction, target)
        self.report("train/loss", loss)
        self.report_by_time(per_frame_regression(prediction.detach(), target), t)
        return loss

    def optimizer_step(self, epoch: int, batch_index: int, *args: Any, **kwargs: Any) -> None:
        """Update theta- once per step: DeepSpeed calls this for every micro-batch."""
        super().optimizer_step(epoch, batch_index, *args, **kwargs)
        if (batch_index + 1) % self.trainer.accumulate_grad_batches == 0:
            self.target.update(self.student)

    @property
    def evaluated(self) -> nn.Module:
        """theta-, which the published code saves and samples as well."""
        return self.target.module

    def networks(self) -> dict[str, nn.Module]:
        """The student, its target and the teacher."""
        return super().networks() | {"target": self.target.module}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save theta-: resuming with another target would change the method."""
        checkpoint["target"] = self.target.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore theta-."""
        super().on_load_checkpoint(checkpoint)
        self.target.load_state_dict(checkpoint["target"])
