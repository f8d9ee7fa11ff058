"""Training progress: a bar on a terminal, lines in a log, a callable for a sweep."""

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

log = logging.getLogger(__name__)

Report = Callable[[int, int, str], None]


class Progress(ProgressBar):
    """Shows steps, loss and the time left.

    Args:
        report: called as (done, total, note) with every refresh.
        every_s: seconds between lines of the log; a bar and `report` are refreshed twice a second.
        console: where a bar is drawn, if it is a terminal; None: standard error.
    """

    def __init__(
        self, report: Report | None = None, every_s: float = 10.0, console: Console | None = None
    ) -> None:
        super().__init__()
        self._report, self._every_s = report, every_s
        self._console = console
        self._bar: Bar | None = None
        self._enabled = True

    def disable(self) -> None:
        """Disable output, as Lightning does on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Enable output again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and the bar."""
        super().on_train_start(trainer, pl_module)
        self._first, self._began = trainer.global_step, time.monotonic()
        self._refreshed, self._logged = -float("inf"), self._began
        console = self._console or Console(stderr=True)
        if self._enabled and console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=console, transient=True)
            self._bar.start()
            total = _total(trainer)
            self._task = self._bar.add_task("training", total=total, completed=self._first)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refresh bar, log and report when due."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        now, done, total = time.monotonic(), trainer.global_step, _total(trainer)
        if not self._enabled or (done < total and now - self._refreshed < 0.5):
            return
        self._refreshed, note = now, _loss(outputs)
        if self._report is not None:
            self._report(done, total, note)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=note or "training")
        elif now - self._logged >= self._every_s:
            self._logged = now
            left = (total - done) * (now - self._began) / max(done - self._first, 1)
            log.info("step %d/%d  %s  %.0f s left", done, total, note, left)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove the bar: an error message follows."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _total(trainer: Trainer) -> int:
    return trainer.max_steps if trainer.max_steps > 0 else int(trainer.estimated_stepping_batches)


def _loss(outputs: Any) -> str:
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    return f"loss {loss.item():.4f}" if isinstance(loss, torch.Tensor) else ""
