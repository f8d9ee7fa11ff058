"""What a Slurm job does: the same ``execute`` as anywhere, and what Slurm's signals mean to it.

Slurm sends USR2 before the time limit and, where the cluster is set up so, before a preemption; it
sends TERM at a preemption, a ``scancel`` and a ``scontrol requeue``. Each becomes one interruption:
a fit saves at the end of the batch, all ranks together, and stops. After a USR2 submitit, and
nobody else, queues the job again (Lightning's own requeueing is off). After a mere TERM it is not
ours to say what comes next: Slurm ends the job or starts it again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from types import FrameType

from submitit.helpers import DelayedSubmission

from experiments.execute import execute
from experiments.folder import RunFolder
from sweeps.worker import output_to

END_WITHIN_S = 900.0


class SlurmRun:
    """Executes one run folder; submitit stores it, and calls it on every node of the job."""

    def __init__(self, folder: Path, package: str) -> None:
        self.folder = folder
        self.package = package

    def __call__(self) -> None:
        """Execute the run; returns when it is done. Raises what `execute` raises."""
        folder, first = RunFolder(self.folder), os.environ["SLURM_PROCID"] == "0"
        requeue = signal.getsignal(signal.SIGUSR2)
        asked = _Asked()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with output_to(folder.path / "log.txt") if first else contextlib.nullcontext():
                execute(folder, package=self.package)
        except KeyboardInterrupt:
            if folder.done:
                return
        else:
            return
        end = time.monotonic() + END_WITHIN_S
        while time.monotonic() < end:
            if asked.to_requeue and first:
                requeue(signal.SIGUSR2, None)  # submitit's; does not come back
            time.sleep(0.2)
        raise TimeoutError(f"stopped {END_WITHIN_S:.0f} s ago, and Slurm has not ended this job")

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again: the same, all state is in the run folder."""
        return DelayedSubmission(self)


class _Asked:
    """Hears Slurm's signals and passes the first one on as an interruption (SIGINT)."""

    def __init__(self) -> None:
        self.to_requeue = False
        self._heard = False
        self._process = os.getpid()
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader of data, forked from here: Slurm signals every process of a job
        self.to_requeue |= number == signal.SIGUSR2
        if not self._heard:
            self._heard = True
            signal.raise_signal(signal.SIGINT)
