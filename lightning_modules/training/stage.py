"""The base class of all stages: student, blocks, optimizer, random draws, hand-off.

A stage file has the equation (``training_step``) and the settings (constructor); forcing, rollout
and losses come from ``diffusion``. Batches have ``key`` (list of str), ``text`` ``[B, L, D]`` and,
except for prompts alone, ``latents`` ``[B, F, C, H, W]``. Where frames have cameras there are
``poses`` ``[B, F, 3, 4]`` and ``intrinsics`` ``[B, F, 4]`` too: a network is called as
``self.posed(net, batch)``, and nothing else knows of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from diffusers.optimization import get_scheduler
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_modules.diffusion.flow import shift
from lightning_modules.diffusion.losses import grad_norm
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import FewSteps, Past, few_step_times, rollout
from lightning_modules.diffusion.visibility import block_of, partition
from lightning_modules.networks.cameras import Posed, projective
from lightning_modules.networks.pipeline_folder import writing
from lightning_modules.ranges import (
    Betas,
    Blocks,
    ClipShape,
    NonNegative,
    NonNegativeInt,
    Positive,
    Seed,
)
from lightning_modules.training.gated_adamw import GatedAdamW
from lightning_modules.training.sharding import move_to_device

Schedule = Literal["constant", "linear", "cosine"]
NO_CAMERAS: Mapping[str, Tensor] = MappingProxyType({})


class Stage(LightningModule):
    """A student in training.

    Args:
        student: the trained network (the generator).
        negative: embedding of the negative prompt, ``[L, D]``.
        seed: determines all noise, together with the step and the sample's key.
        clip_shape: ``[F, C, H, W]`` of a latent clip.
        blocks: ``framewise``, ``chunkwise``, a block size or a list of sizes.
        shift: timestep shift towards noise (Wan at 480p: 5).
        learning_rate: of AdamW, for the student.
        betas: of AdamW, for every network.
        weight_decay: of AdamW, decoupled, for every network.
        schedule: of all learning rates over the steps of the fit: ``constant`` (published), or from
            their value to 0 by a line (``linear``) or half a period of a cosine (``cosine``).
        warmup_steps: in which the rates rise from 0 first.
    """

    fields: tuple[str, ...] = ("latents", "text")
    """The arrays of a sample that this stage reads."""
    chapter = "stage2"
    """Part of the random seed: stages of one chapter are compared with each other and share their
    noise; a student never sees the noise that its teacher was trained on."""
    few_steps = 4
    """Steps of validation samples, for methods that do not fix their number."""
    first_few_steps = 4
    forward_mode: str = ""
    """The setting by which its steps differentiate a network in forward mode; "": none do. Neither
    the hooks of ZeRO-3 nor FlexAttention and flash-attn have forward derivatives."""
    two_times = False
    """Whether the network that it hands on has a second time (`networks/wan/two_time.py`)."""
    takes_two_times = False
    """Whether its student may have one: it is asked for jumps to data alone, or with both times."""
    update_cycle = 1
    """Steps of one cycle of alternating updates, in which every trained network is updated."""

    def __init__(
        self,
        student: nn.Module,
        negative: Tensor,
        seed: Seed,
        clip_shape: ClipShape,
        blocks: Blocks,
        shift: Positive,
        learning_rate: NonNegative,
        betas: Betas,
        weight_decay: NonNegative,
        schedule: Schedule = "constant",
        warmup_steps: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.student = student.train().requires_grad_(True)
        self.register_buffer("negative", negative, persistent=False)
        self.seed, self.shift = seed, shift
        self.clip_shape = tuple(clip_shape)
        self.sizes = partition(blocks, clip_shape[0])
        self.register_buffer("block_of_frame", block_of(self.sizes), persistent=False)
        self.learning_rate, self.betas, self.weight_decay = learning_rate, betas, weight_decay
        self.schedule, self.warmup_steps = schedule, warmup_steps
        self.student_updated = True  # by the current step; see gated_adamw.py

    # -- what a training step needs ----------------------------------------------------------

    def randomness(self, batch: dict[str, Any]) -> Randomness:
        """The random draws of this batch at this step."""
        seed = f"{self.chapter}/{self.seed}"
        return Randomness(seed, self.global_step, batch["key"], self.device)

    def posed(self, net: Any, batch: Mapping[str, Any]) -> Any:
        """The network, bound to the cameras of the batch if it has any."""
        if "poses" not in batch:
            return net
        return Posed(net, projective(batch["poses"], batch["intrinsics"]))

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
        """Attach a frozen network outside the state dict, so that checkpoints do not contain it."""
        self.__dict__[role] = network.eval().requires_grad_(False)

    def on_fit_start(self) -> None:
        """Move frozen networks, which are not submodules, to the device."""
        own = set(self.modules())
        for network in self.networks().values():
            if network not in own:
                move_to_device(
                    self.trainer.strategy, network, self.device, keep=network is self.evaluated
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network before loading any of it.

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
        """AdamW's parameter groups, one per trained network (protocol: ``gated_adamw.py``)."""
        return [{"params": list(self.student.parameters()), "lr": self.learning_rate}]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and the schedule of its learning rates, over ``trainer.max_steps``."""
        optimizer = self.optimizer()
        name = self.schedule
        if name == "constant":
            if not self.warmup_steps:
                return optimizer
            name = "constant_with_warmup"
        schedule = get_scheduler(
            name,
            optimizer,
            num_warmup_steps=self.warmup_steps,
            num_training_steps=self.trainer.max_steps,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def optimizer(self) -> GatedAdamW:
        """One AdamW for every stage, whatever the number of networks."""
        return GatedAdamW(
            self.parameter_groups(),
            betas=tuple(self.betas),
            weight_decay=self.weight_decay,
            fused=True,
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log gradient norms before clipping, per updated network; under DeepSpeed, which does not
        expose gradients, the strategy logs them.
        """
        if not self._reported():
            return
        for group in optimizer.param_groups:
            if group.get("active", True) and any(p.grad is not None for p in group["params"]):
                name = group.get("name", "student")
                self.log(f"train/grad_norm_{name}", grad_norm(group["params"]))

    def report(self, name: str, value: Tensor) -> None:
        """Log a number if TensorBoard's next entry will show it.

        Logging at every step would cost a millisecond per value and a device synchronisation.
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
        """Whether this is its network's last update before a log entry, or there is no trainer."""
        if self._trainer is None:
            return True
        every = self.trainer.log_every_n_steps
        return every > 0 and -(self.global_step + 1) % every < self.update_cycle

    @torch.no_grad()
    def sample(
        self, text: Tensor, keys: Sequence[str], cameras: Mapping[str, Tensor] = NO_CAMERAS
    ) -> Tensor:
        """Clips ``[B, F, C, H, W]`` for the prompts; the same keys always give the same noise.

        ``cameras`` are the ``poses`` and ``intrinsics`` of the clips, if they have any.
        """
        random = Randomness(self.seed, 0, keys, self.device)
        times = few_step_times(self.sizes, self.few_steps, self.first_few_steps, self.shift)
        return rollout(
            Past(self.posed(self.evaluated, cameras), text),
            random.normal("noise", self.clip_shape),
            self.sizes,
            FewSteps(times, lambda step: random.normal(f"renoise/{step}", self.clip_shape)),
        )

    def hand_off(self, folder: Path) -> None:
        """Write the network for the next stage: ``folder/student``, in diffusers format."""
        with writing(folder / "student"):
            self.evaluated.save_pretrained(folder / "student")
