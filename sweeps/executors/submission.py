"""Idempotent submission of a run to Slurm's queue.

A job is found again by its comment, the folder's path; its id is kept in ``slurm/job.json``.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from datamodules.atomic import write_text
from experiments.runs.folder import RunFolder
from experiments.runs.lock import flock
from sweeps.executors import Job
from sweeps.executors.squeue import cancel, listed


def submit_once(job: Job, after: Sequence[str], package: str) -> tuple[str, bool]:
    """The id of this run's job, and whether it is new.

    ``after`` are ids of jobs that must end well before it starts; if one does not, Slurm cancels
    this one. Raises Full, Refused, Unreachable.
    """
    from sweeps.executors.sbatch import submit  # submitit is imported by those who submit

    folder = job.folder / "slurm"
    before = folder.is_dir()
    folder.mkdir(exist_ok=True)
    with _alone(folder):
        if before and (id := _find(job.folder)):
            return id, False
        RunFolder(job.folder).clear_failure()
        id = submit(job, after, package)
        kept = {"job": id, "submitted": time.time(), "after": list(after), "asks": job.slurm}
        write_text(folder / "job.json", json.dumps(kept, indent=1))
    return id, True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One runner at a time, so that the second one sees the job of the first.

    Where the file system has no locks, two that submit in the same second may both do: then the
    run's lease lets one of the jobs work.
    """
    with open(folder / "submitting", "w", encoding="utf-8") as file:
        flock(file, fcntl.LOCK_EX)
        yield


def _find(folder: Path) -> str:
    """The id of the live job that has this run, or ""."""
    for entry in listed():
        if entry.live and entry.folder == folder:
            if (folder / "slurm" / f"{entry.id}_submitted.pkl").is_file():
                return entry.id
            cancel(entry.id)  # a runner died between sbatch and storing the job's program
    return ""
