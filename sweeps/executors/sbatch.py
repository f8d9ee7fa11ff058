"""One call of sbatch, through submitit, and what it says when it takes no job."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from experiments.launch.ranks.topology import SHARDED
from experiments.runs.environment import slurms
from sweeps.executors import Job, Unreachable
from sweeps.executors.refusals import Full, Refused
from sweeps.executors.resources import SECTION, Resources
from sweeps.executors.slurm_job import SlurmRun
from sweeps.executors.squeue import listed

WITHIN_S = 60  # sbatch itself tries again for minutes, without a word
_FULL = re.compile(
    r"Submit\w*Limit|(?<!Per)Jobs?Limit|MaxJobs?Per\w+Limit|MaxJobCount"
    r"|queue full|unable to accept job|Resource temporarily unavailable"
)
"""A limit on the number of jobs: of a user, an account or a QOS (QOSMaxSubmitJobPerUserLimit,
AssocMaxSubmitJobLimit, ...), or of the cluster (MaxJobCount)."""
_POLICY = "job submit limit, user's size and/or time limits"
_WHICH = re.compile(r"\b(QOS|Assoc)\w+Limit\b")
"""Slurm's message for all limits of a user, account or QOS; newer ones say which before."""
_TEMPORARY = (
    "contact slurm controller",
    "controller in standby",
    "timed out",
    "were transmitted or received",
    "send failure",
    "receive failure",
    "onnection refused",
    "onnection failure",
    "uthentication",  # munge is not there
    "dependency problem",  # a restarted controller lost a job that this one depends on
)


class _Submitter(SlurmExecutor):
    """submitit's, calling sbatch for a limited time and in an environment that decides nothing."""

    stay: tuple[str, ...] = ()

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        drop = sorted(set(os.environ) - set(slurms(os.environ, self.stay)))
        without = [word for name in drop for word in ("-u", name)]
        return ["env", *without, "timeout", str(WITHIN_S), "sbatch", str(submission_file_path)]


def submit(job: Job, after: Sequence[str], package: str) -> str:
    """The id of a new job, which starts when the jobs ``after`` have ended well.

    Raises Full, Refused, Unreachable.
    """
    asks = Resources.of(job.slurm)
    more = {"comment": str(job.folder), "requeue": True, **asks.more}
    if after:
        more |= {"dependency": f"afterok:{':'.join(after)}", "kill-on-invalid-dep": "yes"}
    parameters = asks.parameters(job.recipe)
    if parameters["nodes"] > 1 and job.recipe["verb"] in SHARDED:
        # One lost node is no end: what counts is whether the set is complete.
        more["no-kill"] = True
        parameters["teardown"] = [f"test -f {shlex.quote(str(job.folder / 'done.json'))}"]
    submitter = _Submitter(job.folder / "slurm", max_num_timeout=asks.restarts)
    submitter.stay = asks.left_to_user
    submitter.update_parameters(**parameters, job_name=job.run, additional_parameters=more)
    try:
        return submitter.submit(SlurmRun(job.folder, package)).job_id
    except (FailedJobError, FailedSubmissionError) as error:
        raise _meaning(str(error).strip(), parameters | asks.more) from error


def _meaning(said: str, asked: Mapping[str, Any]) -> RuntimeError:
    """The exception for what sbatch said, which was asked for these resources."""
    if _FULL.search(said):
        return Full(said)
    if not said or any(sign in said for sign in _TEMPORARY):
        return Unreachable(said or f"sbatch did not answer within {WITHIN_S} s")
    if _POLICY in said and not _WHICH.search(said) and any(entry.live for entry in listed()):
        return Full(said)  # it is no limit on the number of jobs where there are none
    return Refused(f"{said}; it was asked for {dict(asked)}: see {SECTION} of the scale")
