"""Queries of Slurm about our jobs, which are recognised by their comment, the run folder.

``squeue`` also lists jobs that have ended in the last minutes (MinJobAge), with the state in which
they did; ``sacct`` lists older ones with some delay if accounting is enabled. Whether a run is
done is read from its folder only.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from experiments.runs.environment import slurms
from sweeps.executors import Unreachable

_TIMEOUT_S = 30
_FIELDS = "%i|%T|%r|%k"
_LIVE = (
    "CONFIGURING",
    "COMPLETING",
    "PENDING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESIZING",
    "RESV_DEL_HOLD",
    "RUNNING",
    "SIGNALING",
    "SPECIAL_EXIT",
    "STAGE_OUT",
    "STOPPED",
    "SUSPENDED",
)


@dataclass(frozen=True)
class Listed:
    """A job as squeue lists it; ``reason`` says why it waits, or why it ended."""

    id: str
    state: str
    reason: str
    folder: Path

    @property
    def live(self) -> bool:
        """Whether it runs or may run later."""
        return self.state in _LIVE

    @property
    def held(self) -> bool:
        """Whether Slurm holds it after a node failed to launch it; it would wait for ever."""
        return self.state == "PENDING" and self.reason == "launch failed requeued held"

    @property
    def withdrawn(self) -> bool:
        """Whether Slurm itself has cancelled it, since a job it waits for did not end well."""
        return self.state == "CANCELLED" and self.reason == "DependencyNeverSatisfied"

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.state == "PENDING" and self.reason != "None" else ""
        return f"{self.state.lower()}{reason}"


def listed() -> list[Listed]:
    """The user's jobs. Raises Unreachable."""
    user = f"--user={os.getuid()}"  # --me came with Slurm 20.02
    answer = _ask("squeue", user, "--noheader", "--states=all", f"--format={_FIELDS}")
    rows = (line.split("|", 3) for line in answer.splitlines() if line.count("|") >= 3)
    return [Listed(id, state, reason, Path(comment)) for id, state, reason, comment in rows]


def ended_as(job: str) -> str:
    """The state that accounting gives for a job that squeue has forgotten, or ``UNKNOWN``."""
    try:
        words = _ask("sacct", "-X", "-n", "-P", "-o", "State", "-j", job).split()
    except Unreachable:  # many clusters have no accounting
        return "UNKNOWN"
    return words[0] if words and words[0] not in _LIVE else "UNKNOWN"


def cancel(job: str) -> None:
    """Take a job out of the queue. Raises Unreachable."""
    _ask("scancel", job)


def release(job: str) -> None:
    """Release a held job. Raises Unreachable."""
    _ask("scontrol", "release", job)


def requeue(job: str) -> None:
    """Requeue a job. Raises Unreachable, also when Slurm does not accept."""
    _ask("scontrol", "requeue", job)


def forget_dependencies(job: str) -> None:
    """Remove a job's dependencies. Raises Unreachable."""
    _ask("scontrol", "update", f"jobid={job}", "dependency=")


def _ask(*command: str) -> str:
    """What one of Slurm's programs answers. Raises Unreachable with what it says instead."""
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT_S,
            env=slurms(os.environ),
        )
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{command[0]} did not answer within {_TIMEOUT_S} s") from None
    except OSError as error:
        raise Unreachable(f"{command[0]} cannot be called: {error.strerror}") from None
    if answer.returncode:
        said = answer.stderr.strip() or f"it ended with status {answer.returncode}"
        raise Unreachable(f"{' '.join(command)}: {said}")
    return answer.stdout


def last_job(folder: Path) -> str:
    """The id of the last job of this run, or ""."""
    try:
        return json.loads((folder / "slurm" / "job.json").read_text(encoding="utf-8"))["job"]
    except (OSError, ValueError, KeyError):
        return ""


def last_words(folder: Path, job: str) -> str:
    """The last lines of the job's own stdout and stderr, outside the run's log."""
    try:
        text = (folder / "slurm" / f"{job}_0_log.err").read_bytes()[-2000:]
    except OSError:
        return ""
    return text.decode(errors="replace").strip()
