"""EMA of the student (the generator) alone, in float32: it is sampled, scored and handed off.

Lightning's own averaging copies the whole module, real and fake score included. This one advances
only on steps that update the student (`Stage.student_updated`, see `training/gated_adamw.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_modules.training.ema import EMA
from lightning_modules.training.sharding import fill, local_shard, move_to_device


class StudentEMA(Callback):
    """shadow <- decay shadow + (1 - decay) student, after each update of the student.

    Args:
        decay: EMA decay per student update.
        start_step: student updates before the EMA starts, from the student's current weights.
    """

    def __init__(self, decay: float, start_step: int = 0) -> None:
        self.decay, self.start_step = decay, start_step
        self.updates = 0
        self._begun = False
        self._ema: EMA | None = None
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the student before a strategy shards it."""
        if self._ema is None:
            self._ema = EMA(pl_module.student, self.decay)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move or shard the shadow as the student is."""
        move_to_device(trainer.strategy, self._ema.module, pl_module.device, keep=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start at the student, unless a checkpoint has restored a shadow."""
        self._step = trainer.global_step
        if self.start_step == 0 and not self._begun:
            self._begin(pl_module)

    def _begin(self, pl_module: LightningModule) -> None:
        self._ema.reset(pl_module.student)
        self._begun = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the shadow if this step updated the student."""
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if not (stepped and pl_module.student_updated):
            return
        self.updates += 1
        if self._begun:
            self._ema.update(pl_module.student)
        elif self.updates >= self.start_step:
            self._begin(pl_module)

    def ema_state_dict(self) -> dict[str, Tensor] | None:
        """The shadow's weights under the student's names; None before the EMA starts."""
        return self._ema.state_dict() if self._begun else None

    @contextmanager
    def swapped(self, pl_module: LightningModule) -> Iterator[None]:
        """Swap the EMA into the student inside the `with` block; nothing before the EMA starts."""
        if not self._begun:
            yield
            return
        student = list(pl_module.student.parameters())
        own = [local_shard(parameter).clone() for parameter in student]
        fill(student, map(local_shard, self._ema.module.parameters()))
        try:
            yield
        finally:
            fill(student, own)

    def state_dict(self) -> dict[str, Any]:
        """Updates seen and the shadow."""
        return {"updates": self.updates, "shadow": self.ema_state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the shadow of a checkpoint, even if no step is left to train.

        Lightning restores callbacks after `setup`, and under DeepSpeed after `on_fit_start`.
        """
        self.updates, shadow = state_dict["updates"], state_dict["shadow"]
        if shadow is not None:
            self._ema.load_state_dict(shadow)
            self._begun = True
