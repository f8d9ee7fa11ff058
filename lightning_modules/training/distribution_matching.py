"""Distribution matching distillation (DMD): student, real and fake score, alternating updates.

Attributes and recipe keys keep their earlier names: ``teacher`` is the real score, ``critic`` the
fake score (docs/glossary.md).
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.flow import add_noise, to_x0, velocity
from lightning_modules.diffusion.losses import (
    distribution_matching,
    distribution_matching_gradient,
    per_frame_regression,
    regression,
)
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.ranges import NonNegative, PositiveInt, SolverSteps, UnitInterval
from lightning_modules.training.stage import Stage


class DistributionMatching(Stage):
    """``grad KL(p_student || p_real) = E [s_fake(x_t) - s_real(x_t)] dx/dtheta`` (DMD).

    Optimizer steps alternate: one student update, then ``critic_steps`` fake-score updates, each on
    fresh clips. The fake score is trained by flow matching on the student's clips.

    A subclass defines how the student generates and what the scores are conditioned on.

    Args:
        teacher: the real score (``real_score``), frozen.
        critic: the fake score (``fake_score``), trained.
        few_steps: steps of the student's sampler.
        first_few_steps: steps of its first block.
        guidance: CFG scale of the real score. Published "3.0" in the form c + 3 (c - u) is 4.
        critic_learning_rate: of the fake score; published 4e-7, a fifth of the student's.
        critic_steps: fake-score updates per student update; published 5.
        t_min: lowest time at which the scores are compared; published 0.02.
        t_max: highest; published 0.98.
    """

    takes_two_times = True

    def __init__(
        self,
        *,
        teacher: nn.Module,
        critic: nn.Module,
        few_steps: SolverSteps,
        first_few_steps: SolverSteps,
        guidance: NonNegative,
        critic_learning_rate: NonNegative,
        critic_steps: PositiveInt,
        t_min: UnitInterval,
        t_max: UnitInterval,
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        if t_min >= t_max:
            raise ValueError(f"stage.t_min: {t_min} must be below stage.t_max, {t_max}")
        self.freeze("teacher", teacher)
        self.critic = critic.train().requires_grad_(True)
        self.few_steps, self.first_few_steps = few_steps, first_few_steps
        self.guidance, self.critic_learning_rate = guidance, critic_learning_rate
        self.critic_steps, self.t_min, self.t_max = critic_steps, t_min, t_max
        self.update_cycle = 1 + critic_steps

    @abstractmethod
    def generate(self, batch: dict[str, Any], random: Randomness) -> Tensor:
        """The student's clips ``[B, F, C, H, W]``, with gradient if it is enabled."""

    @abstractmethod
    def velocity(
        self, net: nn.Module, x_t: Tensor, t: Tensor, text: Tensor, batch: dict[str, Any]
    ) -> Tensor:
        """A score network's velocity at a noised clip of the student."""

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """One update, of the student or of the fake score."""
        random = self.randomness(batch)
        if self.student_updated:
            return self.student_loss(batch, random)
        return self.fake_score_loss(batch, random)

    def student_loss(self, batch: dict[str, Any], random: Randomness) -> Tensor:
        """The DMD loss: its gradient in the student's clips is (fake - real) / normaliser."""
        x, text = self.generate(batch, random), batch["text"]
        with torch.no_grad():
            x_t, t, _ = self.noised(x, random)
            v_fake = self.velocity(self.critic, x_t, t, text, batch)
            v_real = forcing.guided(
                lambda c: self.velocity(self.teacher, x_t, t, c, batch),
                text,
                self.negative,
                self.guidance,
            )
            fake, real = to_x0(x_t, v_fake, t), to_x0(x_t, v_real, t)
            gradient = distribution_matching_gradient(x, real, fake)
        self.report("train/loss", gradient.square().mean() / 2)
        return distribution_matching(x, gradient)

    def fake_score_loss(self, batch: dict[str, Any], random: Randomness) -> Tensor:
        """Unweighted flow matching on the student's clips."""
        with torch.no_grad():
            x = self.generate(batch, random)
        x_t, t, eps = self.noised(x, random)
        v = self.velocity(self.critic, x_t, t, batch["text"], batch)
        loss = regression(v, velocity(x, eps))
        self.report("train/critic_loss", loss)
        self.report_by_time(per_frame_regression(v.detach(), velocity(x, eps)), t)
        return loss

    def noised(self, x: Tensor, random: Randomness) -> tuple[Tensor, Tensor, Tensor]:
        """``x_t`` at one random time per clip, ``t`` ``[B, F]`` and the noise."""
        t = self.times_per_sample(random).clamp(self.t_min, self.t_max)
        eps = random.normal("score_noise", self.clip_shape)
        return add_noise(x, eps, t), t, eps

    # -- two networks, one optimizer ---------------------------------------------------------

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The student's group and the fake score's."""
        critic = {"params": list(self.critic.parameters()), "lr": self.critic_learning_rate}
        return [group | {"name": "student"} for group in super().parameter_groups()] + [
            critic | {"name": "critic"}
        ]

    def on_train_batch_start(self, batch: dict[str, Any], batch_index: int) -> None:
        """Activate the network of this step, which depends on the step count alone (resume).

        The protocol is documented in ``gated_adamw.py``.
        """
        self.student_updated = self.global_step % (1 + self.critic_steps) == 0
        active = {"student": self.student_updated, "critic": not self.student_updated}
        for group in self.optimizers().param_groups:
            group["active"] = active[group["name"]]
        self.student.requires_grad_(active["student"])
        self.critic.requires_grad_(active["critic"])

    def earlier_updates(self) -> int:
        """Of the network that this step updates."""
        rounds, within = divmod(self.global_step, 1 + self.critic_steps)
        return rounds if self.student_updated else self.critic_steps * rounds + within - 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Both trainable: DeepSpeed would save the inactive network as a frozen one."""
        super().on_save_checkpoint(checkpoint)
        self.on_train_batch_end()

    def on_train_batch_end(self, *args: Any) -> None:
        """Both trainable again."""
        self.student.requires_grad_(True)
        self.critic.requires_grad_(True)
