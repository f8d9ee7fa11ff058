"""The lock of a run folder, between processes on one or several machines.

``flock`` is authoritative: the kernel releases it however the holder ends, and NFS (4, or 3 with
lockd) and Lustre (mounted with ``flock``) extend it across machines. Where it is local to a machine
(Lustre's ``localflock``) or missing, the file itself is a lease: it names its holder, who touches
it every few seconds. A holder on another machine counts as gone when its Slurm job has ended or,
without Slurm, when the file was not touched for ``STALE_S``; clock differences below that do no
harm. If two processes write their names at the same time, both read the file again a moment later,
and the one that is not named in it gives up.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from datamodules.atomic import flock
from experiments.runs.environment import slurms

BEAT_S = 10.0
STALE_S = 90.0
SETTLE_S = 0.1  # until a name on a shared disk is visible; longer than from reading to writing one
_ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
)  # fmt: skip


class Busy(RuntimeError):
    """Another process holds the lock of this run folder."""


@dataclass(frozen=True)
class Holder:
    """A process with the lock; ``job`` is its Slurm job or ""."""

    process: int
    host: str
    job: str
    since: str

    @classmethod
    def this(cls) -> Holder:
        job = os.environ.get("SLURM_JOB_ID", "")
        return cls(os.getpid(), socket.gethostname(), job, time.ctime())

    def __str__(self) -> str:
        job = f"Slurm job {self.job}, " if self.job else ""
        return f"{job}process {self.process} on {self.host}, since {self.since}"


class Lease:
    """The lock of one run folder, the file ``lease`` in it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lease"

    def holder(self) -> Holder | None:
        """The holder named in the file, alive or not."""
        try:
            return Holder(**json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def held(self) -> bool:
        """Whether a live process holds the lock; one that was killed on this machine does not."""
        try:
            with open(self._path, encoding="utf-8") as file:
                locked = flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return self._is_alive(self.holder(), locked)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the lock. Raises Busy, naming the holder, when another process has it."""
        with open(self._path, "a+", encoding="utf-8") as file:
            locked, this, named = self._acquire(file.fileno()), Holder.this(), self.holder()
            if self._is_alive(named, locked) or self.holder() != named:  # asking Slurm is slow
                raise self._busy()
            file.truncate(0)
            file.write(json.dumps(asdict(this)))
            file.flush()
            os.fsync(file.fileno())
            ended = threading.Event()
            beat = threading.Thread(target=_touch, args=(file.fileno(), ended), daemon=True)
            beat.start()
            try:
                time.sleep(SETTLE_S)
                if self.holder() != this:
                    raise self._busy()
                yield
            finally:
                ended.set()
                beat.join()
                if self.holder() == this:
                    file.truncate(0)  # no holder: others need not wait until it is stale
                flock(file, fcntl.LOCK_UN)  # forked loaders may still have the file open

    def _acquire(self, descriptor: int) -> bool:
        """Take the kernel's lock; False if it has none for this file. Raises Busy."""
        for _ in range(10):  # `held` takes a shared lock for a moment
            try:
                return flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.02)
        raise self._busy()

    def _busy(self) -> Busy:
        return Busy(f"{self._path.parent} is held by {self.holder() or 'another process'}")

    def _is_alive(self, holder: Holder | None, locked: bool) -> bool:
        """Whether the named holder is alive where the kernel cannot know.

        That is on another machine and, if the file system has no locks, on this one too.
        """
        this = Holder.this()
        if holder is None:
            return False
        stale = time.time() - self._path.stat().st_mtime > STALE_S
        if holder.host == this.host:
            return not (locked or stale) and _exists(holder.process)
        if holder.job and holder.job == this.job:
            return False  # this job before its requeue on this machine
        return not (job_is_gone(holder.job, unknown=stale) if holder.job else stale)


def _touch(descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        os.utime(descriptor)


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def job_is_gone(job: str, unknown: bool) -> bool:
    """Whether Slurm knows that a job has ended; ``unknown`` without Slurm.

    A suspended job does not touch the file but has not ended.
    """
    if shutil.which("squeue") is None:
        return unknown
    command = ["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}"]
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=20,
            env=slurms(os.environ),
        )
    except subprocess.TimeoutExpired:
        return unknown
    if answer.returncode:
        return unknown or "Invalid job id" in answer.stderr
    return answer.stdout.strip() in ("", *_ENDED)
