"""The program of a Slurm job: ``execute``, with the handling of Slurm's signals.

Slurm sends USR2 before the time limit and, where the cluster is set up so, before a preemption; it
sends TERM at a preemption, a ``scancel`` and a ``scontrol requeue``. They cause one interruption:
a fit saves at the end of the batch on all ranks and stops. After USR2, submitit requeues the job
(Lightning's own requeueing is off). After TERM alone nothing is requeued here: Slurm ends the job
or restarts it.

When a rank is lost without a signal, the first task that notices requeues the job, which resumes
from the last checkpoint, and the other tasks wait for Slurm to end them. A job that repeatedly
loses ranks without progress fails instead.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from pathlib import Path
from types import FrameType

from submitit.helpers import DelayedSubmission

from experiments.launch.execute import execute
from experiments.launch.ranks.launcher import RankLost
from experiments.runs.folder import RunFolder
from sweeps.executors import Unreachable
from sweeps.executors.squeue import requeue
from sweeps.executors.worker import output_to

END_WITHIN_S = 900.0
SETTLE_S = 5.0  # by then, what ended the rank (such as scancel) has reached all tasks
LOSSES = 3  # requeues of one job without a new checkpoint
log = logging.getLogger(__name__)


class SlurmRun:
    """Executes one run folder; submitit stores it, and calls it on every node of the job."""

    def __init__(self, folder: Path, package: str) -> None:
        self.folder = folder
        self.package = package

    def __call__(self) -> None:
        """Execute the run; returns when it is done. Raises what `execute` raises."""
        folder, first = RunFolder(self.folder), os.environ["SLURM_PROCID"] == "0"
        preempted = signal.getsignal(signal.SIGUSR2)
        asked, lost = _Asked(), None
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with output_to(folder.path / "log.txt") if first else contextlib.nullcontext():
                execute(folder, package=self.package)
        except KeyboardInterrupt:
            if folder.done:
                return
        except RankLost as error:
            lost = error
        else:
            return
        asked.interrupts = False  # nothing is running any more
        began = time.monotonic()
        while time.monotonic() - began < END_WITHIN_S:
            if asked.to_requeue and first:
                preempted(signal.SIGUSR2, None)  # submitit's; does not come back
            if lost and not asked.heard and time.monotonic() - began > SETTLE_S:
                _queue_again(folder, lost)
                lost = None
            time.sleep(0.2)
        raise TimeoutError(f"stopped {END_WITHIN_S:.0f} s ago, and Slurm has not ended this job")

    def checkpoint(self) -> DelayedSubmission:
        """For submitit's requeue: the same object, since all state is in the run folder."""
        return DelayedSubmission(self)


def _queue_again(folder: RunFolder, lost: RankLost) -> None:
    """Requeue this job, unless another node's task does. Raises the error of the lost rank."""
    job, slurm = os.environ["SLURM_JOB_ID"], folder.path / "slurm"
    slurm.mkdir(exist_ok=True)
    try:  # the task that creates the file requeues
        (slurm / f"lost.{job}.{os.environ.get('SLURM_RESTART_COUNT', 0)}").touch(exist_ok=False)
    except FileExistsError:
        return
    times = [mark.stat().st_mtime for mark in slurm.glob(f"lost.{job}.*")]
    if sum(time > folder.saved_at() for time in times) > LOSSES:
        raise lost
    try:
        requeue(job)
    except Unreachable as silent:
        raise lost from silent
    log.warning("%s; job %s is queued again", lost, job)


class _Asked:
    """Handles Slurm's signals; forwards the first one as an interruption (SIGINT)."""

    def __init__(self) -> None:
        self.to_requeue = False
        self.heard = False
        self.interrupts = True
        self._process = os.getpid()
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked data loader: Slurm signals every process of a job
        self.to_requeue |= number == signal.SIGUSR2
        first, self.heard = not self.heard, True
        if first and self.interrupts:
            signal.raise_signal(signal.SIGINT)
