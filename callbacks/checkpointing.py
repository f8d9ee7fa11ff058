"""Checkpoints that survive interruption, a full disk and a diverging loss.

A checkpoint serves to *resume this run*; the next run starts from the hand-off. It is written to a
temporary file, synced and renamed, so it is never partial, and read with `weights_only=True`, so
nothing is unpickled.
"""

import errno
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import CheckpointIO

from datamodules.atomic import growing, replacing
from datamodules.signals import heard, insists

log = logging.getLogger(__name__)
LAST_S = 5.0  # skip the final checkpoint if it would save less training time than this


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint atomically; reads tensors and plain values only."""

    def save_checkpoint(
        self, checkpoint: Mapping[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write to a temporary neighbour, sync, rename.

        Raises:
            OSError: if it could not be written, for example because the disk is full; the file that
                was there before is untouched.
        """
        path = Path(path)
        try:
            with replacing(path) as part, part.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
            kept = "the previous one is kept" if path.exists() else "there is no earlier one"
            raise OSError(
                f"{path}: checkpoint not written, {kept} ({error}); free disk space and start the "
                "same command again"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain values; `weights_only` cannot be switched off.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such checkpoint; start without one")
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:  # unpickling a file of another kind may raise anything
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: cut off
                raise
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{path}: damaged, not readable as a checkpoint ({first});"
                " restore a copy, or delete it to start this run again"
            ) from error

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the file, if it is there."""
        Path(path).unlink(missing_ok=True)


class Checkpoint(Callback):
    """Saves `path` periodically, after the last step, and on a signal to stop.

    On a signal the running step finishes, a checkpoint is saved and `fit` returns with
    `interrupted` set; a resumed run continues exactly there. Nothing is saved before the first
    step, and after the last one a signal has no effect. A second signal stops at once (resume from
    the last periodic checkpoint), unless it is one of several that come together
    (`signals.insists`).

    Args:
        path: of the one checkpoint that is kept.
        every_s: seconds between checkpoints; None: no limit.
        every_steps: optimizer steps between checkpoints; None: no limit.
    """

    def __init__(
        self, path: str | Path, every_s: float | None = None, every_steps: int | None = None
    ) -> None:
        self.path = Path(path)
        self.every_s, self.every_steps = every_s, every_steps
        self.interrupted = False
        self.saved_step: int | None = None
        self._previous: dict[int, Any] = {}
        self._signal, self._signalled_at = 0, 0.0  # the first one and its time

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install signal handlers. Move behind all other callbacks, so that the checkpoint has
        their state after this step.
        """
        trainer.callbacks = [c for c in trainer.callbacks if c is not self] + [self]
        self.interrupted, self._signal = False, 0
        # Lightning's own SIGTERM handler broadcasts, which can collide with a collective of the
        # running step.
        trainer._signal_connector.register_signal_handlers = lambda: None
        if threading.current_thread() is threading.main_thread():
            for number in heard():
                self._previous[number] = signal.signal(number, self._on_signal)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; stop before the first step if a signal came during setup."""
        self._saved_at, self._step = time.monotonic(), trainer.global_step
        self.saved_step = trainer.global_step if trainer.ckpt_path else None
        if trainer.is_global_zero:
            growing(self.path).unlink(missing_ok=True)
        stop, _ = self._agreed(trainer)
        if stop:
            log.info("stopped before the first step")
            self.interrupted = trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save or stop if due: between steps, never between micro-batches of one step."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        stop, due = self._agreed(trainer)
        if stop or due:
            trainer.save_checkpoint(self.path, weights_only=False)
            self._saved_at, self.saved_step = time.monotonic(), trainer.global_step
            self._step = trainer.global_step
        if stop:
            log.info("stopped at step %d; saved %s", trainer.global_step, self.path)
            self.interrupted = trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore signal handlers, after the strategy has gathered its networks."""
        self._restore_signals()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Restore signal handlers; a state in the middle of a step is not saved."""
        self._restore_signals()

    def _agreed(self, trainer: Trainer) -> tuple[bool, bool]:
        """Whether to stop and whether to save, agreed by all ranks, as all write a checkpoint.

        Stop if any rank got a signal; save by the first rank's clock.
        """
        age = time.monotonic() - self._saved_at
        late = self.every_s is not None and age >= self.every_s
        late |= trainer.global_step == trainer.max_steps and age >= LAST_S
        far = self.every_steps is not None and trainer.global_step - self._step >= self.every_steps
        votes = torch.tensor(
            [bool(self._signal), trainer.is_global_zero and (late or far)],
            dtype=torch.int32, device=trainer.strategy.root_device,
        )  # fmt: skip
        stop, due = trainer.strategy.reduce(votes, reduce_op="max").tolist()
        return bool(stop), bool(due)

    def _on_signal(self, number: int, frame: Any) -> None:
        if not self._signal:
            self._signal, self._signalled_at = number, time.monotonic()
            os.write(2, b"saving after this step, then stopping; a second signal stops at once\n")
        elif insists(number, self._signal, time.monotonic() - self._signalled_at):
            self._restore_signals()
            raise KeyboardInterrupt

    def _restore_signals(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


def stopped(trainer: Trainer) -> bool:
    """Whether training was interrupted, so that nothing is handed on."""
    signalled = (c.interrupted for c in trainer.callbacks if isinstance(c, Checkpoint))
    return trainer.interrupted or any(signalled)
