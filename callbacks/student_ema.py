"""An exponential moving average of the student alone: what is sampled, scored and handed off.

Lightning's own averaging copies the whole module, teacher and critic included; this one follows
`pl_module.student`, in float32, and moves only after steps that moved the student.
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
    """shadow <- decay shadow + (1 - decay) student, from the student's `start_step`-th update on.

    Args:
        decay: share of the shadow that stays at each update of the student.
        start_step: updates of the student before the average begins, at the student of that moment.
    """

    def __init__(self, decay: float, start_step: int = 0) -> None:
        self.decay, self.start_step = decay, start_step
        self.updates = 0
        self._begun = False
        self._ema: EMA | None = None
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the student while it is whole: a strategy may split it over the ranks."""
        if self._ema is None:
            self._ema = EMA(pl_module.student, self.decay)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the shadow to where the student is."""
        move_to_device(trainer.strategy, self._ema.module, pl_module.device, keep=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at the student, unless a checkpoint has brought a shadow."""
        self._step = trainer.global_step
        if self.start_step == 0 and not self._begun:
            self._begin(pl_module)

    def _begin(self, pl_module: LightningModule) -> None:
        self._ema.reset(pl_module.student)
        self._begun = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follow the student if this step moved it."""
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if not (stepped and pl_module.student_updated):
            return
        self.updates += 1
        if self._begun:
            self._ema.update(pl_module.student)
        elif self.updates >= self.start_step:
            self._begin(pl_module)

    def ema_state_dict(self) -> dict[str, Tensor] | None:
        """Return the shadow's weights under the student's names; None before the average begins."""
        return self._ema.state_dict() if self._begun else None

    @contextmanager
    def swapped(self, pl_module: LightningModule) -> Iterator[None]:
        """Let the student hold the average inside the block; before it begins, its own weights."""
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
        """Go on with the shadow of a checkpoint, also where no step is left to train.

        Lightning restores callbacks after `setup`, and under DeepSpeed after `on_fit_start`.
        """
        self.updates, shadow = state_dict["updates"], state_dict["shadow"]
        if shadow is not None:
            self._ema.load_state_dict(shadow)
            self._begun = True
