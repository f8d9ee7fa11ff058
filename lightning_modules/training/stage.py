"""What every stage shares: the student, its blocks, its optimizer, its randomness, the hand-off.

A stage file holds the equation (its ``training_step``) and the settings (its constructor); how a
past reaches a network, how clips are generated and what a loss is come from ``diffusion``.
Batches carry ``key`` (list of str), ``text`` ``[B, L, D]`` and, but for prompts, ``latents``
``[B, F, C, H, W]``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from lightning_modules.diffusion.flow import shift
from lightning_modules.diffusion.losses import grad_norm
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import FewSteps, Past, few_step_times, rollout
from lightning_modules.diffusion.visibility import block_of, partition
from lightning_modules.training.gated_adamw import GatedAdamW
from lightning_modules.training.sharding import place


class Stage(LightningModule):
    """A student in training.

    Args:
        student: the network that learns.
        negative: embedding of the negative prompt, ``[L, D]``.
        seed: with the step and the sample's key it decides all noise.
        clip_shape: ``[F, C, H, W]`` of a latent clip.
        blocks: ``framewise``, ``chunkwise``, a block size or a list of sizes.
        shift: warp of the time axis towards noise (Wan at 480p: 5).
        learning_rate: of AdamW, for the student.
        betas: of AdamW, for every network.
        weight_decay: of AdamW, decoupled, for every network.
    """

    fields: tuple[str, ...] = ("latents", "text")
    """The arrays of a sample that this stage reads."""
    chapter = "stage2"
    """Stages of one chapter are arms of one comparison and share their noise; chapters do not, so
    that no student is asked about the very noise its teacher was trained on."""
    few_steps = 4
    """How the panel in TensorBoard samples, where the method itself fixes no number of steps."""
    first_few_steps = 4
    turns = 1
    """Steps in which every trained network has its turn once."""

    def __init__(
        self,
        student: nn.Module,
        negative: Tensor,
        seed: int,
        clip_shape: list[int],
        blocks: str | int | list[int],
        shift: float,
        learning_rate: float,
        betas: list[float],
        weight_decay: float,
    ) -> None:
        super().__init__()
        self.student = student.train().requires_grad_(True)
        self.register_buffer("negative", negative, persistent=False)
        self.seed, self.shift = seed, shift
        self.clip_shape = tuple(clip_shape)
        self.sizes = partition(blocks, clip_shape[0])
        self.register_buffer("block_of_frame", block_of(self.sizes), persistent=False)
        self.learning_rate, self.betas, self.weight_decay = learning_rate, betas, weight_decay
        self.student_updated = True

    # -- what a training step needs ----------------------------------------------------------

    def randomness(self, batch: dict[str, Any]) -> Randomness:
        """The chance of this batch at this step."""
        seed = f"{self.chapter}/{self.seed}"
        return Randomness(seed, self.global_step, batch["key"], self.device)

    def times_per_sample(self, random: Randomness) -> Tensor:
        """One shifted time per clip, ``[B, F]``."""
        t = shift(random.uniform("time", (1,)), self.shift)
        return t.expand(-1, self.clip_shape[0])

    def times_per_block(self, random: Randomness) -> Tensor:
        """An independent shifted time per block, ``[B, F]``."""
        u = random.uniform("time", (len(self.sizes),))
        return shift(u[:, self.block_of_frame], self.shift)

    def drop_text(self, random: Randomness, text: Tensor, probability: float) -> Tensor:
        """Replace a clip's prompt by the negative one with ``probability``."""
        if probability == 0:
            return text
        dropped = random.uniform("text_dropout") < probability
        return torch.where(dropped[:, None, None], self.negative.to(text), text)

    # -- what a run needs --------------------------------------------------------------------

    @property
    def evaluated(self) -> nn.Module:
        """The network that is sampled and handed to the next stage."""
        return self.student

    def networks(self) -> dict[str, nn.Module]:
        """Every network by its role, trained or frozen."""
        roles = ("student", "teacher", "critic")
        return {role: getattr(self, role) for role in roles if hasattr(self, role)}

    def freeze(self, role: str, network: nn.Module) -> None:
        """Hold a network that is only asked, outside the state dict: no checkpoint carries it."""
        self.__dict__[role] = network.eval().requires_grad_(False)

    def on_fit_start(self) -> None:
        """Frozen networks are no submodules, so Lightning does not move them."""
        own = set(self.modules())
        for network in self.networks().values():
            if network not in own:
                place(self.trainer.strategy, network, self.device, kept=network is self.evaluated)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network before anything of it is taken over.

        Raises:
            ValueError: names the file and the first weight of another shape.
        """
        own = self.state_dict()
        for name, saved in checkpoint.get("state_dict", {}).items():  # DeepSpeed checks itself
            if name in own and own[name].shape != saved.shape:
                raise ValueError(
                    f"{self.trainer.ckpt_path}: {name} is {list(saved.shape)}, this run's network"
                    f" has {list(own[name].shape)}; it is another run's checkpoint: delete it to"
                    " start this run again"
                )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What AdamW trains, a group a network."""
        return [{"params": list(self.student.parameters()), "lr": self.learning_rate}]

    def configure_optimizers(self) -> GatedAdamW:
        """One AdamW for every stage, whatever the number of networks."""
        return GatedAdamW(
            self.parameter_groups(),
            betas=tuple(self.betas),
            weight_decay=self.weight_decay,
            fused=True,
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradient norms before clipping, per trained network; DeepSpeed, which keeps gradients
        to itself, logs them in its strategy.
        """
        if not self._reported():
            return
        for group in optimizer.param_groups:
            if group.get("active", True) and any(p.grad is not None for p in group["params"]):
                name = group.get("name", "student")
                self.log(f"train/grad_norm_{name}", grad_norm(group["params"]))

    def report(self, name: str, value: Tensor) -> None:
        """Log a number if TensorBoard's next entry will show it.

        At every step it would cost Lightning a millisecond each, and a device a wait.
        """
        if self._reported():
            self.log(name, value)

    def report_by_time(self, per_frame_loss: Tensor, t: Tensor, bins: int = 4) -> None:
        """The loss in ``bins`` ranges of ``t``; both ``[B, F]``."""
        if not self._reported():
            return
        for index in range(bins):
            low, high = index / bins, (index + 1) / bins
            inside = (t >= low) & (t <= high)
            if inside.any():
                name = f"loss_at_t/{low:.2f}-{high:.2f}"
                self.log(name, per_frame_loss.detach()[inside].mean())

    def _reported(self) -> bool:
        """Whether this is the last turn of its network before an entry, or it is asked by hand."""
        if self._trainer is None:
            return True
        every = self.trainer.log_every_n_steps
        return every > 0 and -(self.global_step + 1) % every < self.turns

    @torch.no_grad()
    def sample(self, text: Tensor, keys: Sequence[str]) -> Tensor:
        """Clips ``[B, F, C, H, W]`` for the prompts; the same keys always give the same noise."""
        random = Randomness(self.seed, 0, keys, self.device)
        times = few_step_times(self.sizes, self.few_steps, self.first_few_steps, self.shift)
        return rollout(
            Past(self.evaluated, text),
            random.normal("noise", self.clip_shape),
            self.sizes,
            FewSteps(times, lambda step: random.normal(f"renoise/{step}", self.clip_shape)),
        )

    def hand_off(self, folder: Path) -> None:
        """Write what the next run starts from: ``folder/student``, in diffusers format."""
        self.evaluated.save_pretrained(folder / "student")
