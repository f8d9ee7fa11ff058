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
from sweeps.executors.resources import Resources
from sweeps.executors.squeue import cancel, listed

_TEMPORARY = (
    "contact slurm controller",
    "timed out",
    "temporarily",
    "MaxSubmit",
    "JobLimit",
    "dependency problem",  # a restarted controller lost a job that this one depends on
)


class Refused(RuntimeError):
    """Slurm rejected a job; ``temporary`` if it may accept it later."""

    def __init__(self, why: str, temporary: bool) -> None:
        super().__init__(why)
        self.temporary = temporary


def submit_once(job: Job, after: Sequence[str], package: str) -> tuple[str, bool]:
    """The id of this run's job, and whether it is new.

    ``after`` are ids of jobs that must end well before it starts; if one does not, Slurm cancels
    this one. Raises Refused.
    """
    folder = job.folder / "slurm"
    before = folder.is_dir()
    folder.mkdir(exist_ok=True)
    with _alone(folder):
        if before and (id := _find(job.folder)):
            return id, False
        RunFolder(job.folder).clear_failure()
        id = _sbatch(job, after, package)
        kept = {"job": id, "submitted": time.time(), "after": list(after), "asks": job.slurm}
        write_text(folder / "job.json", json.dumps(kept, indent=1))
    return id, True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One runner at a time, so that the second one sees the job of the first.

    Where the file system has no locks, two that submit in the same second may both do: then the
    run's lease lets one of the jobs work.
    """
    with open(folder / "submitting", "w") as file:
        flock(file, fcntl.LOCK_EX)
        yield


def _find(folder: Path) -> str:
    """The id of the live job that has this run, or ""."""
    jobs = listed()
    if jobs is None:
        raise Refused("squeue does not answer", temporary=True)
    for entry in jobs:
        if entry.live and entry.folder == folder:
            if (folder / "slurm" / f"{entry.id}_submitted.pkl").is_file():
                return entry.id
            cancel(entry.id)  # a runner died between sbatch and storing the job's program
    return ""


def _sbatch(job: Job, after: Sequence[str], package: str) -> str:
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from sweeps.executors.slurm_job import SlurmRun

    asks = Resources.of(job.slurm)
    more = {"comment": str(job.folder), "requeue": True, **asks.more}
    if after:
        more |= {"dependency": f"afterok:{':'.join(after)}", "kill-on-invalid-dep": "yes"}
    parameters = asks.parameters(job.recipe)
    submitter = SlurmExecutor(job.folder / "slurm", max_num_timeout=asks.restarts)
    submitter.update_parameters(**parameters, job_name=job.run, additional_parameters=more)
    try:
        return submitter.submit(SlurmRun(job.folder, package)).job_id
    except (FailedJobError, FailedSubmissionError) as error:
        why = str(error).strip()
        temporary = any(sign in why for sign in _TEMPORARY)
        cure = (
            "" if temporary else f"; it was asked for {parameters}: see launch.slurm of the scale"
        )
        raise Refused(f"{why}{cure}", temporary) from error
