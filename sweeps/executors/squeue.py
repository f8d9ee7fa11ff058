"""Queries of Slurm about our jobs, which are recognised by their comment, the run folder.

``squeue`` also lists jobs that have ended in the last minutes (MinJobAge), with the state in which
they did; ``sacct`` lists older ones with some delay if accounting is enabled. Whether a run is
done is read from its folder only.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

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


def listed() -> list[Listed] | None:
    """The user's jobs; None when Slurm is not there or does not answer."""
    command = ["squeue", "--me", "--noheader", "--states=all", f"--format={_FIELDS}"]
    answer = _ask(command)
    if answer is None:
        return None
    rows = (line.split("|", 3) for line in answer.splitlines() if line.count("|") >= 3)
    return [Listed(id, state, reason, Path(comment)) for id, state, reason, comment in rows]


def ended_as(job: str) -> str:
    """The state that accounting gives for a job that squeue has forgotten, or ``UNKNOWN``."""
    answer = _ask(["sacct", "-X", "-n", "-P", "-o", "State", "-j", job])
    words = (answer or "").split()
    return words[0] if words and words[0] not in _LIVE else "UNKNOWN"


def cancel(job: str) -> None:
    """Take a job out of the queue."""
    subprocess.run(["scancel", job], capture_output=True, timeout=_TIMEOUT_S)


def release(job: str) -> None:
    """Release a held job."""
    _ask(["scontrol", "release", job])


def requeue(job: str) -> bool:
    """Requeue a job; returns whether Slurm accepted."""
    return _ask(["scontrol", "requeue", job]) is not None


def forget_dependencies(job: str) -> None:
    """Remove a job's dependencies."""
    _ask(["scontrol", "update", f"jobid={job}", "dependency="])


def last_job(folder: Path) -> str:
    """The id of the last job of this run, or ""."""
    try:
        return json.loads((folder / "slurm" / "job.json").read_text())["job"]
    except (OSError, ValueError, KeyError):
        return ""


def last_words(folder: Path, job: str) -> str:
    """The last lines of the job's own stdout and stderr, outside the run's log."""
    try:
        text = (folder / "slurm" / f"{job}_0_log.err").read_bytes()[-2000:]
    except OSError:
        return ""
    return text.decode(errors="replace").strip()


def _ask(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return None
    return answer.stdout if answer.returncode == 0 else None
