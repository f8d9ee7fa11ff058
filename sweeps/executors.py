"""Where runs are executed. One surface: ``submit(job)``, ``poll() -> events``, ``close()``.

``LocalPool`` keeps a few worker processes alive, one thread each. Clusters get classes of their
own with the same surface.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from experiments.layers import nearest

CLUSTERS = ("local",)


@dataclass(frozen=True)
class Job:
    """What to do for a run: ``check`` its recipe, or execute (``run``) its folder."""

    do: str
    run: str
    recipe: dict[str, Any] | None = None
    folder: Path | None = None

    def line(self) -> bytes:
        """The command as a worker reads it."""
        folder = str(self.folder) if self.folder else None
        command = {"do": self.do, "recipe": self.recipe, "folder": folder}
        return json.dumps(command).encode() + b"\n"


@dataclass(frozen=True)
class Event:
    """What happened to a job.

    checked, progress, done, found (done by another), failed, busy, interrupted or died.
    """

    kind: str
    job: Job
    text: str = ""
    done: int = 0
    total: int = 0


class LocalPool:
    """At most ``size`` worker processes; each is started when first needed and then kept.

    A worker that dies is reported as ``died`` and replaced at the next submit.
    """

    def __init__(self, size: int, package: str = "experiments") -> None:
        self.size = size
        self._package = package
        self._workers: list[_Worker] = []
        self._events = selectors.DefaultSelector()

    @property
    def free(self) -> int:
        """How many jobs can be submitted now."""
        return self.size - len(self.jobs)

    @property
    def jobs(self) -> list[Job]:
        """The jobs in work."""
        return [worker.job for worker in self._workers if worker.job]

    def submit(self, job: Job) -> None:
        """Hand a job to an idle worker; the caller has seen that one is free."""
        assert self.free > 0, "the pool is full"
        idle = next((worker for worker in self._workers if worker.job is None), None)
        if idle is None:
            idle = _Worker(self._package)
            self._workers.append(idle)
            self._events.register(idle.output, selectors.EVENT_READ, idle)
        idle.job = job
        with contextlib.suppress(BrokenPipeError):  # it has died; poll finds out
            idle.input.write(job.line())
            idle.input.flush()

    def poll(self, timeout: float) -> list[Event]:
        """Wait up to ``timeout`` seconds for events and return them."""
        if not self._workers:
            time.sleep(timeout)
        found: list[Event] = []
        for key, _ in self._events.select(timeout):
            worker: _Worker = key.data
            lines = worker.read()
            if lines is None:
                found += self._bury(worker)
            for line in lines or []:
                found.append(worker.event(json.loads(line)))
        return found

    def interrupt(self) -> None:
        """Ask every run in work to save and stop."""
        for worker in self._workers:
            if worker.job:
                worker.process.send_signal(signal.SIGINT)

    def close(self, kill: bool = False) -> None:
        """End all workers: idle ones leave by themselves, busy ones are killed."""
        for worker in self._workers:
            if worker.job or kill:
                worker.process.kill()
            worker.end()
        self._workers.clear()
        self._events.close()

    def _bury(self, worker: _Worker) -> list[Event]:
        self._events.unregister(worker.output)
        self._workers.remove(worker)
        why = worker.end()
        return [Event("died", worker.job, why)] if worker.job else []


class _Worker:
    """One worker process and the job it has."""

    def __init__(self, package: str) -> None:
        self.job: Job | None = None
        self._last_words = tempfile.TemporaryFile()  # noqa: SIM115, closed by end()
        self._rest = b""
        one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sweeps.worker", "--package", package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._last_words,
            start_new_session=True,  # Ctrl-C reaches the runner, which asks the workers to save
            env={**os.environ, **one_thread, "TOKENIZERS_PARALLELISM": "false"},
        )
        self.input: IO[bytes] = self.process.stdin
        self.output: IO[bytes] = self.process.stdout

    def read(self) -> list[bytes] | None:
        """Complete lines that have arrived, None at the end of the process."""
        data = os.read(self.output.fileno(), 1 << 16)
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines

    def event(self, answer: dict[str, Any]) -> Event:
        kind = answer.pop("event")
        event = Event(kind, self.job, **answer)
        if kind != "progress":
            self.job = None
        return event

    def end(self) -> str:
        """Wait for the process to be gone; returns how it ended and its last words."""
        with contextlib.suppress(BrokenPipeError):
            self.input.close()
        self.output.close()
        code = self.process.wait()
        self._last_words.seek(0)
        words = self._last_words.read()[-2000:].decode(errors="replace").strip()
        self._last_words.close()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        return "\n".join(filter(None, [f"the worker process ended with {how}", words]))


def executor(cluster: str, workers: int | None = None, package: str = "experiments") -> LocalPool:
    """The executor of a cluster by name. Raises ValueError naming those that exist."""
    if cluster not in CLUSTERS:
        raise ValueError(
            f"unknown cluster {cluster!r}{nearest(cluster, CLUSTERS)}"
            f" (there are: {', '.join(CLUSTERS)})"
        )
    return LocalPool(workers or cores(), package)


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
