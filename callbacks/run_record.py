"""Measured cost of a training run: passes through each network, samples, time, memory, throughput.

Only training steps count: validation samples do not.
"""

import resource
import time
from collections import Counter
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn


class RunRecord(Callback):
    """Counts over all interruptions of a run; `summary()` has the result.

    `throughput/clips_per_s` is logged every `log_every_n_steps` and includes all that happened
    since the last entry (validation samples, checkpoints).

    Networks are those of `pl_module.networks()`, a dict from role to module. A *backward* is
    counted when a gradient reaches a network's output.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._seconds = 0.0
        self._peak = 0
        self._started: float | None = None
        self._counting = False
        self._hooks: list[Any] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook every network and start the clock."""
        self._started = time.monotonic()
        self._mark = self._started, self._counts["samples"]
        for role, network in pl_module.networks().items():
            self._hooks.append(network.register_forward_hook(self._counter(role)))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count from here."""
        self._counting = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count to here."""
        self._counting = False
        self._counts["samples"] += _size(batch) * trainer.world_size
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._counts["batches"] += 1
        self._look()
        if trainer.global_step % trainer.log_every_n_steps == 0:
            (since, before), now = self._mark, time.monotonic()
            self._mark = now, self._counts["samples"]
            rate = (self._counts["samples"] - before) / (now - since)
            pl_module.log("throughput/clips_per_s", rate)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the hooks off."""
        self._finish()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take the hooks off."""
        self._finish()

    def summary(self) -> dict[str, Any]:
        """`counters` (batches, samples, <role>_forwards, <role>_backwards), `fit_s`, peak bytes."""
        self._look()
        return {
            "counters": dict(self._counts),
            "fit_s": self._seconds,
            "peak_memory_bytes": self._peak,
        }

    def state_dict(self) -> dict[str, Any]:
        """The counts so far."""
        return self.summary()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._counts = Counter(state_dict["counters"])
        self._seconds, self._peak = state_dict["fit_s"], state_dict["peak_memory_bytes"]

    def _counter(self, role: str) -> Any:
        def count(network: nn.Module, inputs: Any, output: Tensor) -> None:
            if self._counting:
                self._counts[f"{role}_forwards"] += 1
                if output.requires_grad:
                    output.register_hook(backward)

        def backward(grad: Tensor) -> None:
            self._counts[f"{role}_backwards"] += 1

        return count

    def _look(self) -> None:
        if self._started is not None:
            now = time.monotonic()
            self._seconds, self._started = self._seconds + now - self._started, now
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
        self._peak = max(self._peak, peak)

    def _finish(self) -> None:
        self._look()
        self._started, self._counting = None, False
        while self._hooks:
            self._hooks.pop().remove()


def _size(batch: Any) -> int:
    """Samples in a batch: a dict of equally long columns, or a tensor."""
    return len(next(iter(batch.values()))) if isinstance(batch, dict) else len(batch)
