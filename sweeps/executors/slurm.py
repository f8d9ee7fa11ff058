"""A Slurm cluster: one job per run, through submitit.

Jobs wait for each other in Slurm's queue (``afterok`` along the graph), so the sweep completes
even if this process ends earlier. They are single jobs, not arrays: the tasks of an
array share one dependency and one size, which neighbours in the graph do not.

The state of a run is read from its folder; Slurm is queried only for live jobs, and for how jobs
without a result have ended. A job that is preempted, or whose node fails, keeps its id and its
place in the graph.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from experiments.runs.folder import RunFolder
from sweeps.executors import Event, Job, Unreachable
from sweeps.executors.devices import cores
from sweeps.executors.local import LocalPool
from sweeps.executors.refusals import Full, Refused
from sweeps.executors.resources import Resources
from sweeps.executors.squeue import (
    Listed,
    ended_as,
    forget_dependencies,
    last_words,
    listed,
    release,
)
from sweeps.executors.submission import submit_once

LIMIT = 500
LOOK_EVERY_S = 5.0
SETTLE_S = 30.0  # delay of files and accounting after the end of a job
TRY_AGAIN_S = 30.0  # pause after Slurm took no job
PATIENCE_S = 900.0  # with a Slurm that does not answer
RELEASES = 3  # of a job that Slurm holds because nodes failed to launch it
_NOT_ITS_FAULT = ("BOOT_FAIL", "NODE_FAIL", "PREEMPTED")
_GOES_ON = ("queued", "noted", "started", "progress")
_USUAL = ("None", "Priority", "Resources", "Dependency", "BeginTime", "Cleaning")
"""Reasons for which a job waits that end by themselves."""
_EXPLAINED = "scontrol show job says more; its resources are launch.slurm of the scale"


@dataclass
class _Given:
    """A run submitted to Slurm, and the last known state of its job."""

    job: Job
    id: str
    state: str = "PENDING"
    gone_since: float | None = None
    ready_since: float | None = None
    releases: int = 0


class SlurmQueue:
    """Submits runs as jobs and watches them. Recipes are checked on this machine.

    Args:
        package: where the verbs are.
        limit: maximal number of jobs in the queue.

    Raises ValueError without Slurm or submitit.
    """

    detached = True

    def __init__(self, package: str = "experiments.verbs", limit: int | None = None) -> None:
        if shutil.which("sbatch") is None:
            raise ValueError("cluster slurm: there is no sbatch here; start this on a login node")
        if find_spec("submitit") is None:
            raise ValueError("cluster slurm: submitit is missing; pip install -e '.[slurm]'")
        self.size = limit or LIMIT
        self._package = package
        self._checks = LocalPool(min(cores(), 4), package)
        self._given: dict[str, _Given] = {}
        self._told: list[Event] = []
        self._next_look = 0.0
        self._not_before = 0.0
        self._noted: set[str] = set()
        self._silent_since: dict[str, float] = {}  # by what was asked

    @property
    def jobs(self) -> list[Job]:
        """Active checks and queued runs."""
        return [*self._checks.jobs, *(given.job for given in self._given.values())]

    def problem(self, job: Job) -> str:
        """What is wrong with the job's ``launch.slurm`` or with its folder, or ""."""
        if set("%\\") & set(str(job.folder)):
            return f"{job.folder}: Slurm does not take % and \\ in a path literally; rename it"
        try:
            Resources.of(job.slurm)
        except ValueError as error:
            return str(error)
        return ""

    def choose(self, jobs: Sequence[Job]) -> list[Job]:
        """As many as the queue may hold; none for a while after Slurm took none."""
        if jobs and jobs[0].do == "check":
            return self._checks.choose(jobs)
        if time.monotonic() < self._not_before:
            return []
        return list(jobs[: max(self.size - len(self._given), 0)])

    def submit(self, job: Job) -> None:
        """Check a recipe here, or queue a run, unless its job exists already."""
        if job.do == "check":
            self._checks.submit(job)
            return
        after = [self._given[name].id for name in job.after if name in self._given]
        if len(after) < len(job.after):  # one of them was rejected
            self._told.append(Event("withdrawn", job))
            return
        if time.monotonic() < self._not_before:  # it has just taken none
            self._told.append(Event("withdrawn", job))
            return
        try:
            id, new = submit_once(job, after, self._package)
        except Refused as refused:
            self._told.append(Event("failed", job, str(refused)))
            return
        except Full as full:
            self._heard("submission")
            self._later(job, f"there is no room for more jobs ({full}); waiting until some end")
            return
        except Unreachable as silent:
            self._later(job, self._unheard("submission", silent))
            return
        self._heard("submission")
        self._given[job.run] = _Given(job, id)
        waits = f", after {', '.join(job.after)}" if after else ""
        text = f"job {id}{waits}" if new else f"job {id}, which was in the queue already"
        self._told.append(Event("queued", job, text))

    def poll(self, timeout: float) -> list[Event]:
        """Events of checks immediately; the queue is polled every few seconds only."""
        if self._checks.jobs:
            return self._checks.poll(timeout)
        events, self._told = self._told, []
        now = time.monotonic()
        if events or now < self._next_look:
            time.sleep(0 if events else min(timeout, self._next_look - now))
            return events
        self._next_look = time.monotonic() + LOOK_EVERY_S
        try:
            jobs = listed()
        except Unreachable as silent:  # keep the last known state
            text = self._once(self._unheard("queue", silent))
            return [Event("noted", given.job, text) for given in self._given.values() if text][:1]
        self._heard("queue")
        entries = {(entry.id, entry.folder): entry for entry in jobs}
        for given in list(self._given.values()):
            found = _look(given, entries.get((given.id, given.job.folder)))
            if any(event.kind not in _GOES_ON for event in found):
                del self._given[given.job.run]
            events += [e for e in found if e.kind != "noted" or self._once(e.text)]
        return events

    def _later(self, job: Job, why: str) -> None:
        """Try to submit this job, and all others, in a while."""
        self._not_before = time.monotonic() + TRY_AGAIN_S
        self._told.append(Event("withdrawn", job, self._once(why)))

    def _once(self, text: str) -> str:
        """The text, or "" if the user has been told."""
        new = text not in self._noted
        self._noted.add(text)
        return text if new else ""

    def _heard(self, asked: str) -> None:
        if self._silent_since.pop(asked, None) is not None:
            self._noted.clear()  # should it fall silent again, the user is told again

    def _unheard(self, asked: str, silent: Unreachable) -> str:
        """What to tell the user. Raises Unreachable when that has lasted for too long."""
        now = time.monotonic()
        if now - self._silent_since.setdefault(asked, now) > PATIENCE_S:
            raise Unreachable(f"no answer from Slurm for {PATIENCE_S / 60:.0f} min: {silent}")
        return f"Slurm does not answer ({silent}); trying for {PATIENCE_S / 60:.0f} min"

    def interrupt(self) -> list[str]:
        """Jobs continue; tells how to cancel them."""
        ids = sorted((given.id for given in self._given.values()), key=int)
        self._given.clear()
        if not ids:
            return []
        return [
            f"{len(ids)} jobs stay with Slurm and go on without this runner; to end them:"
            f" scancel {' '.join(ids)}"
        ]

    def close(self) -> None:
        """End the processes that checked recipes."""
        self._checks.close()


def _look(given: _Given, entry: Listed | None) -> list[Event]:
    """Events of a run since the last poll."""
    job, folder = given.job, RunFolder(given.job.folder)
    os.listdir(folder.path)  # refreshes the directory cache of a network file system
    if folder.done:
        return [Event("done", job)]
    if entry is None or not entry.live:
        return _ended(given, entry, folder)
    given.gone_since = None
    before, given.state = given.state, entry.state
    if entry.state == "RUNNING":
        return [*([Event("started", job)] if before != "RUNNING" else []), *_progress(job, folder)]
    if entry.held and given.releases < RELEASES:
        given.releases += 1
        return _changed(release, given) or [
            Event("queued", job, f"job {given.id} again: its node could not launch it")
        ]
    if entry.state == "PENDING" and entry.reason == "Dependency":
        return _let_go(given, folder)
    if before == "RUNNING" and entry.state == "PENDING":
        return [Event("queued", job, f"job {given.id} again, to go on from its checkpoint")]
    if entry.state == "PENDING" and entry.reason not in _USUAL:
        return [Event("noted", job, f"waits in Slurm's queue: {entry.reason}; {_EXPLAINED}")]
    return []


def _let_go(given: _Given, folder: RunFolder) -> list[Event]:
    """Drop dependencies on finished runs, which Slurm may not notice after losing a daemon."""
    if not all(need.done for need in folder.needs.values()):
        return []
    given.ready_since = given.ready_since or time.monotonic()
    settled = time.monotonic() - given.ready_since > SETTLE_S
    return _changed(forget_dependencies, given) if settled else []


def _changed(change: Callable[[str], None], given: _Given) -> list[Event]:
    """Have Slurm change a job; tells if it did not."""
    try:
        change(given.id)
    except Unreachable as silent:
        return [Event("noted", given.job, str(silent))]
    return []


def _progress(job: Job, folder: RunFolder) -> list[Event]:
    reached = folder.read_record().get("progress")
    if not reached:
        return []
    return [Event("progress", job, reached["note"], reached["done"], reached["total"])]


def _ended(given: _Given, entry: Listed | None, folder: RunFolder) -> list[Event]:
    """The job is over and the run is not done."""
    job = given.job
    if why := folder.failure():
        return [Event("failed", job, why.strip().splitlines()[-1])]
    if folder.running():
        return [Event("busy", job)]
    state = entry.state if entry else ended_as(given.id)
    if state == "CANCELLED":
        return [_cancelled(given, entry, folder)]
    given.gone_since = given.gone_since or time.monotonic()
    if time.monotonic() - given.gone_since < SETTLE_S:
        return []
    words = last_words(folder.path, given.id)
    how = "\n".join(filter(None, [f"Slurm job {given.id} ended as {state}", words]))
    forgotten = entry is None and given.state == "PENDING"  # lost when a controller died
    lost = forgotten or state in _NOT_ITS_FAULT
    return [Event("lost" if lost else "died", job, how)]


def _cancelled(given: _Given, entry: Listed | None, folder: RunFolder) -> Event:
    """Cancelled by Slurm, because a job it depends on failed, or by a user."""
    waited = not all(need.done for need in folder.needs.values())
    if entry.withdrawn if entry else waited:
        return Event("withdrawn", given.job)
    return Event("cancelled", given.job, f"Slurm job {given.id} was cancelled (scancel)")
