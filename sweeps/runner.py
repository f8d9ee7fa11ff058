"""Running a sweep: whatever is not done and can start, most urgent first, until nothing is left.

All state is in the run folders. Killing the runner loses nothing; two runners share the work,
because a run in another's hands is locked; a second call finds everything done. A failed run
blocks only what depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from experiments.folder import RunFolder
from experiments.recipe import Run
from sweeps.costs import Costs, remaining, urgency
from sweeps.executors import Event, Job, LocalPool
from sweeps.graph import Sweep

POLL_S = 0.25
LOOK_AGAIN_S = 1.0
GRACE_S = 60.0
ATTEMPTS = 2


class Refused(ValueError):
    """Some recipes do not pass their check; nothing was started. Holds one message a recipe."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n\n".join(problems))


class Interrupted(KeyboardInterrupt):
    """The sweep was told to stop. Holds what every run in work has saved."""

    def __init__(self, messages: Sequence[str]) -> None:
        self.messages = list(messages)
        super().__init__("\n".join(messages))


class Display(Protocol):
    """What a runner tells the world; see sweeps.display."""

    def started(self, run: Run) -> None: ...
    def progress(self, run: Run, done: int, total: int, note: str) -> None: ...
    def ended(self, run: Run, state: str, text: str) -> None: ...
    def overall(self, done: int, total: int, left_s: float, known: bool) -> None: ...
    def say(self, text: str) -> None: ...


@dataclass
class Outcome:
    """Names of runs: executed now, done before, failed (now or earlier), blocked by a failure."""

    executed: list[str] = field(default_factory=list)
    found_done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)


class Runner:
    """Runs one sweep in one folder of runs. Raises Refused before, Interrupted while it runs."""

    def __init__(
        self, sweep: Sweep, runs_dir: Path, pool: LocalPool, display: Display, retry: bool = False
    ) -> None:
        self.sweep = sweep
        self.runs_dir = runs_dir
        self.pool = pool
        self.display = display
        self.retry = retry
        self.costs = Costs(runs_dir)
        self.outcome = Outcome()
        self._done: set[str] = set()
        self._todo: dict[str, Run] = {}
        self._since: dict[str, float] = {}  # runs in our workers' hands
        self._elsewhere: dict[str, float] = {}  # runs in another runner's hands: when to look again
        self._deaths: dict[str, int] = {}

    def run(self) -> Outcome:
        """Run everything that can be run, and report what happened."""
        self._look()
        if not self._todo:
            return self._finish()
        try:
            self._check()
            while self._todo or self._since or self._elsewhere:
                self._look_elsewhere()
                if not self._submit() and not self._since and not self._elsewhere:
                    break  # what is left waits for something that failed
                for event in self.pool.poll(POLL_S):
                    self._handle(event)
                self._tell()
        except KeyboardInterrupt:
            raise Interrupted(self._stop()) from None
        finally:
            self.pool.close()
        return self._finish()

    def _look(self) -> None:
        """Sort all runs by what their folders say."""
        for name, run in self.sweep.runs.items():
            folder = RunFolder(self.runs_dir / name)
            if folder.done:
                self._done.add(name)
                self.outcome.found_done.append(name)
            elif folder.failure() and not self.retry and not folder.running():
                self._fail(run, "failed earlier, and is tried again only with --retry", folder)
            else:
                self._todo[name] = run

    def _check(self) -> None:
        """Let the verbs look at every recipe before anything starts."""
        waiting = list(self._todo.values())
        deaths: dict[str, int] = {}
        problems = {}
        self.display.say(f"checking {len(waiting)} recipes")
        while waiting or self.pool.jobs:
            while waiting and self.pool.free:
                run = waiting.pop()
                self.pool.submit(Job("check", run.name, recipe=run.recipe))
            for event in self.pool.poll(POLL_S):
                name = event.job.run
                if event.kind == "died":
                    deaths[name] = deaths.get(name, 0) + 1
                    if deaths[name] < ATTEMPTS:
                        waiting.append(self._todo[name])
                        continue
                if event.text:
                    where = self.runs_dir / name
                    problems[name] = f"{event.job.recipe['recipe']} ({where.name}): {event.text}"
        if problems:
            raise Refused([problems[name] for name in self._todo if name in problems])

    def _submit(self) -> bool:
        """Start what can start, most urgent first; whether anything could."""
        order = urgency(self.sweep.runs, self.costs)
        ready = [
            run
            for run in self._todo.values()
            if all(need.name in self._done for need in run.needs.values())
        ]
        for run in sorted(ready, key=lambda run: -order[run.name]):
            if not self.pool.free:
                break
            folder = RunFolder.create(run, self.runs_dir)
            del self._todo[run.name]
            if folder.done:  # by another runner, in the meantime
                self._succeed(run, executed=False)
                continue
            if folder.running():
                self._elsewhere[run.name] = time.monotonic() + LOOK_AGAIN_S
                self.display.say(f"{run.name} is being run by another process; waiting for it")
                continue
            self.pool.submit(Job("run", run.name, folder=folder.path))
            self._since[run.name] = time.monotonic()
            self.display.started(run)
        return bool(ready)

    def _look_elsewhere(self) -> None:
        """See what became of the runs that another runner had."""
        now = time.monotonic()
        for name in [name for name, when in self._elsewhere.items() if when <= now]:
            folder, run = RunFolder(self.runs_dir / name), self.sweep.runs[name]
            if folder.running():
                self._elsewhere[name] = now + LOOK_AGAIN_S
                continue
            del self._elsewhere[name]
            if folder.done:
                self._succeed(run, executed=False)
            elif folder.failure():
                self._fail(run, "failed in another process", folder)
            else:
                self._todo[name] = run  # that process was stopped: go on from its checkpoint

    def _handle(self, event: Event) -> None:
        run = self.sweep.runs[event.job.run]
        if event.kind == "progress":
            self.display.progress(run, event.done, event.total, event.text)
            return
        folder = RunFolder(self.runs_dir / run.name)
        self._since.pop(run.name, None)
        if event.kind in ("done", "found"):
            self._succeed(run, executed=event.kind == "done")
        elif event.kind == "failed":
            self._fail(run, event.text, folder)
        elif event.kind == "busy":
            self._elsewhere[run.name] = time.monotonic() + LOOK_AGAIN_S
        elif event.kind == "interrupted":
            raise KeyboardInterrupt  # somebody stopped a worker: stop the sweep likewise
        elif event.kind == "died":
            self._died(run, event.text, folder)

    def _died(self, run: Run, how: str, folder: RunFolder) -> None:
        self._deaths[run.name] = self._deaths.get(run.name, 0) + 1
        if self._deaths[run.name] < ATTEMPTS:
            self.display.ended(run, "lost", f"{how.splitlines()[0]}; continuing it in a new one")
            self._todo[run.name] = run
            return
        hint = " (SIGKILL often means that memory ran out)" if "SIGKILL" in how else ""
        folder.mark_failed(f"{ATTEMPTS} times in a row {how}{hint}\n\n{folder.log_tail()}")
        self._fail(run, f"{how}{hint}", folder)

    def _succeed(self, run: Run, executed: bool) -> None:
        folder = RunFolder(self.runs_dir / run.name)
        self._done.add(run.name)
        (self.outcome.executed if executed else self.outcome.found_done).append(run.name)
        wall = folder.read_record().get("wall_s")
        if wall is not None:
            self.costs.learn(run, wall)
        self._tell()
        self.display.ended(run, "done", "")

    def _fail(self, run: Run, why: str, folder: RunFolder) -> None:
        self.outcome.failed.append(run.name)
        tail = folder.log_tail(8)
        self.display.ended(
            run, "failed", "\n".join([why, *(f"  | {t}" for t in tail.splitlines())])
        )

    def _tell(self) -> None:
        now = time.monotonic()
        blocked = set().union(*(self.sweep.dependants(name) for name in self.outcome.failed))
        left = [
            run
            for name, run in self.sweep.runs.items()
            if name not in self._done and name not in blocked and name not in self.outcome.failed
        ]
        spent = {name: now - since for name, since in self._since.items()}
        seconds, known = remaining(left, spent, self.sweep.runs, self.costs, self.pool.size)
        self.display.overall(len(self._done), len(self.sweep.runs), seconds, known)

    def _stop(self) -> list[str]:
        """Let every run in work save; returns what each one says. A second Ctrl-C stops at once."""
        messages = []
        working = [job for job in self.pool.jobs if job.do == "run"]
        if working:
            self.display.say("stopping: runs in work are saving (Ctrl-C again stops at once)")
        try:
            self.pool.interrupt()
            end = time.monotonic() + GRACE_S
            while any(job.do == "run" for job in self.pool.jobs) and time.monotonic() < end:
                for event in self.pool.poll(POLL_S):
                    if event.kind in ("interrupted", "failed", "done", "found"):
                        messages.append(event.text or f"{event.job.run}: {event.kind}")
        except KeyboardInterrupt:
            messages.append("stopped at once; runs in work go on from their last checkpoint")
        return messages

    def _finish(self) -> Outcome:
        failed = self.outcome.failed
        blocked = set().union(*(self.sweep.dependants(name) for name in failed)) - set(failed)
        self.outcome.blocked = [name for name in self.sweep.runs if name in blocked - self._done]
        return self.outcome
