"""An exponential moving average of the student alone: what is sampled, scored and handed off.

Lightning's own averaging copies the whole module, teacher and critic included; this one follows
`pl_module.student`, in float32, and moves only after steps that moved the student.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_modules.diffusion.ema import EMA


class StudentEMA(Callback):
    """shadow <- decay shadow + (1 - decay) student, from the student's `start_step`-th update on.

    Args:
        decay: share of the shadow that stays at each update of the student.
        start_step: updates of the student before the average begins, at the student of that moment.
    """

    def __init__(self, decay: float, start_step: int = 0) -> None:
        self.decay, self.start_step = decay, start_step
        self.updates = 0
        self._ema: EMA | None = None
        self._restored: dict[str, Tensor] | None = None
        self._step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at the student, or where a checkpoint left the shadow."""
        if self._restored is not None or (self.start_step == 0 and self._ema is None):
            self._ema = EMA(pl_module.student, self.decay)
        if self._restored is not None:
            self._ema.load_state_dict(self._restored)
            self._restored = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the step: a batch that only accumulates gradients moves nothing."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follow the student if this step moved it."""
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if not (stepped and getattr(pl_module, "student_updated", True)):
            return
        self.updates += 1
        if self._ema is not None:
            self._ema.update(pl_module.student)
        elif self.updates >= self.start_step:
            self._ema = EMA(pl_module.student, self.decay)

    def ema_state_dict(self) -> dict[str, Tensor] | None:
        """Return the shadow's weights under the student's names; None before the average begins."""
        return None if self._ema is None else self._ema.state_dict()

    @contextmanager
    def swapped(self, pl_module: LightningModule) -> Iterator[None]:
        """Let the student hold the average inside the block; before it begins, its own weights."""
        if self._ema is None:
            yield
            return
        student = list(pl_module.student.parameters())
        own = [parameter.detach().clone() for parameter in student]
        _fill(student, list(self._ema.module.parameters()))
        try:
            yield
        finally:
            _fill(student, own)

    def state_dict(self) -> dict[str, Any]:
        """Updates seen and the shadow."""
        return {"updates": self.updates, "shadow": self.ema_state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the shadow until there is a student to shape it after."""
        self.updates, self._restored = state_dict["updates"], state_dict["shadow"]


@torch.no_grad()
def _fill(parameters: list[Tensor], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
