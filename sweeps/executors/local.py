"""This machine's cores and GPUs.

A run takes a slot: a core or, if there are GPUs and it is not meant for a CPU, as many GPUs as it
has ranks (``launch.devices``). It is executed by a worker that sees only these GPUs and is reused
for the next run, because starting one costs more than a tiny run; several ranks are child processes
of the worker (``experiments.launch.ranks.launcher``).
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
from collections.abc import Sequence
from typing import IO, Any

from experiments.launch.ranks.topology import wanted
from experiments.runs.environment import workers
from sweeps.executors import Event, Job
from sweeps.executors.devices import wants_gpu


class LocalPool:
    """At most ``cores`` runs on CPUs at a time, and as many on GPUs as are free.

    A worker is started when first needed; one that dies is reported as ``died`` and replaced.
    """

    detached = False

    def __init__(
        self, cores: int, package: str = "experiments.verbs", gpus: Sequence[str] = ()
    ) -> None:
        self.size = len(gpus) or cores
        self._cores = cores
        self._gpus = list(gpus)
        self._package = package
        self._workers: list[_Worker] = []
        self._started: list[Event] = []
        self._events = selectors.DefaultSelector()

    @property
    def jobs(self) -> list[Job]:
        """The active jobs."""
        return [worker.job for worker in self._workers if worker.job]

    def problem(self, job: Job) -> str:
        """Why this machine cannot execute a job: too few GPUs, or several nodes are needed."""
        nodes, devices = wanted(job.recipe)
        if nodes > 1:
            return f"launch.nodes: {nodes}, and this is one machine: use --cluster slurm"
        if self._place(job)[0] == "gpu" and devices > len(self._gpus):
            return (
                f"launch.devices: {devices}, but this machine has {len(self._gpus)} GPUs to use"
                f" ({', '.join(self._gpus)}): ask for fewer, or use --cluster slurm"
            )
        return ""

    def choose(self, jobs: Sequence[Job]) -> list[Job]:
        """Jobs with a free slot, in order; none overtakes another for the same kind of slot."""
        free = {"core": self._cores, "gpu": len(self._gpus)}
        for job in self.jobs:
            place, count = self._place(job)
            free[place] -= count
        chosen, waited_for = [], set()
        for job in jobs:
            place, count = self._place(job)
            if place in waited_for or count > free[place]:
                waited_for.add(place)
                continue
            free[place] -= count
            chosen.append(job)
        return chosen

    def submit(self, job: Job) -> None:
        """Start a job that was chosen."""
        place, count = self._place(job)
        self._worker(count if place == "gpu" else 0).take(job)
        if job.do == "run":
            self._started.append(Event("started", job))

    def poll(self, timeout: float) -> list[Event]:
        """Wait up to ``timeout`` seconds for events and return them."""
        found, self._started = self._started, []
        if found:
            timeout = 0.0
        if not self._workers:
            time.sleep(timeout)
        for key, _ in self._events.select(timeout):
            worker: _Worker = key.data
            lines = worker.read()
            if lines is None:
                why = self._retire(worker)
                found += [Event("died", worker.job, why)] if worker.job else []
            found += [worker.event(json.loads(line)) for line in lines or []]
        return found

    def interrupt(self) -> list[str]:
        """Ask every active run to save and stop."""
        for worker in self._workers:
            if worker.job:
                worker.process.send_signal(signal.SIGINT)
        return []

    def close(self) -> None:
        """End all workers: idle ones exit, busy ones are killed."""
        for worker in self._workers:
            if worker.job:
                worker.process.kill()
            worker.end()
        self._workers.clear()
        self._events.close()

    def _place(self, job: Job) -> tuple[str, int]:
        """("core" or "gpu", how many of them)."""
        if job.do == "check":
            return "core", 1
        _, devices = wanted(job.recipe)
        if self._gpus and wants_gpu(job.recipe):
            return "gpu", devices
        return "core", min(devices, self._cores)  # more ranks than cores are slow, not impossible

    def _worker(self, count: int) -> _Worker:
        """An idle worker with this many exclusive GPUs, existing or new."""
        idle = [worker for worker in self._workers if worker.job is None]
        busy = {gpu for worker in self._workers if worker.job for gpu in worker.gpus}
        fitting = (w for w in idle if len(w.gpus) == count and not busy & set(w.gpus))
        worker = next(fitting, None)
        if worker is None:
            gpus = [gpu for gpu in self._gpus if gpu not in busy][:count]
            worker = _Worker(self._package, gpus if self._gpus else None)
            self._workers.append(worker)
            self._events.register(worker.output, selectors.EVENT_READ, worker)
        for other in idle:
            if other is not worker and set(other.gpus) & set(worker.gpus):
                self._retire(other)  # it may still hold memory on a GPU that is reassigned now
        return worker

    def _retire(self, worker: _Worker) -> str:
        self._events.unregister(worker.output)
        self._workers.remove(worker)
        return worker.end()


class _Worker:
    """One worker process, the GPUs it sees (None: the machine has none) and the job it has."""

    def __init__(self, package: str, gpus: Sequence[str] | None) -> None:
        self.job: Job | None = None
        self.gpus = tuple(gpus or ())
        self._last_words = tempfile.TemporaryFile()  # noqa: SIM115, closed by end()
        self._rest = b""
        more = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        if gpus is not None:
            more["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sweeps.executors.worker", "--package", package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._last_words,
            start_new_session=True,  # Ctrl-C reaches the runner, which asks the workers to save
            env={**workers(os.environ), **more},
        )
        self._input: IO[bytes] = self.process.stdin
        self.output: IO[bytes] = self.process.stdout

    def take(self, job: Job) -> None:
        """Hand it a job."""
        self.job = job
        folder = str(job.folder) if job.folder else None
        command = {"do": job.do, "recipe": job.recipe, "folder": folder}
        with contextlib.suppress(BrokenPipeError):  # it has died; poll reports it
            self._input.write(json.dumps(command).encode() + b"\n")
            self._input.flush()

    def read(self) -> list[bytes] | None:
        """Complete lines that have arrived, None at the end of the process."""
        data = os.read(self.output.fileno(), 1 << 16)
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines

    def event(self, answer: dict[str, Any]) -> Event:
        """The event of a message; after any but progress the worker is idle."""
        event = Event(answer.pop("event"), self.job, **answer)
        if event.kind != "progress":
            self.job = None
        return event

    def end(self) -> str:
        """Wait until the process ends; returns its exit status and last output."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        self.output.close()
        code = self.process.wait()
        self._last_words.seek(0)
        words = self._last_words.read()[-2000:].decode(errors="replace").strip()
        self._last_words.close()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        return "\n".join(filter(None, [f"the worker process ended with {how}", words]))
