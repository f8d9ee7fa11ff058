"""The runner of a sweep: starts every run that is ready, most urgent first, until none is left.

All state is in the run folders. Killing the runner loses nothing; two runners share the work,
because an active run is locked; a second call finds everything done. A failed run blocks only its
dependants.

A local run starts when all its needs are done. On a cluster a run is submitted as soon as all its
needs are done *or queued*, and Slurm starts it when they have succeeded: the sweep continues
without its runner, since login nodes kill long processes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from experiments.runs.folder import RunFolder
from experiments.runs.recipe import Run
from experiments.runs.unchanged import changed_result
from sweeps.executors import Event, Executor, Unreachable
from sweeps.plan.costs import Costs, remaining, urgency
from sweeps.plan.graph import Sweep
from sweeps.run.checks import ATTEMPTS, POLL_S, Refused, check, job_of

LOOK_AGAIN_S = 1.0
SAY_EVERY_S = 30.0


class Interrupted(KeyboardInterrupt):
    """The sweep was stopped. Holds a message on the saved state of every active run."""

    def __init__(self, messages: Sequence[str]) -> None:
        self.messages = list(messages)
        super().__init__("\n".join(messages))


class Display(Protocol):
    """Interface of a runner's output; see sweeps.run.display."""

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
    """Runs one sweep in one folder of runs. Raises Refused before it starts, Interrupted."""

    def __init__(
        self, sweep: Sweep, runs_dir: Path, pool: Executor, display: Display, retry: bool = False
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
        self._given: set[str] = set()  # runs submitted to the executor
        self._since: dict[str, float] = {}  # those of them that are active
        self._elsewhere: dict[str, float] = {}  # runs of another runner: when to check again
        self._deaths: dict[str, tuple[int, float]] = {}  # number, progress saved by then

    def run(self) -> Outcome:
        """Run everything that can be run, and report what happened."""
        self._look()
        if not self._todo:
            return self._finish()
        try:
            self.display.say(f"checking {len(self._todo)} recipes")
            check(self._todo, self.runs_dir, self.pool)
            while self._todo or self._given or self._elsewhere:
                self._look_elsewhere()
                if not self._submit() and not self._given and not self._elsewhere:
                    break  # the rest depends on failed runs
                for event in self.pool.poll(POLL_S):
                    self._handle(event)
                self._tell()
        except KeyboardInterrupt:
            raise Interrupted(self._stop()) from None
        except Unreachable as silent:
            raise Interrupted([str(silent), *self.pool.interrupt()]) from silent
        finally:
            self.pool.close()
        return self._finish()

    def _look(self) -> None:
        """Classify all runs by the state of their folders; Refused if a done one has changed."""
        folders = [RunFolder(self.runs_dir / name) for name in self.sweep.runs]
        if changed := [text for folder in folders if (text := changed_result(folder))]:
            raise Refused(changed)
        for name, run in self.sweep.runs.items():
            folder = RunFolder(self.runs_dir / name)
            if folder.done:
                RunFolder.create(run, self.runs_dir)  # notes where paths lie now
                self._done.add(name)
                self.outcome.found_done.append(name)
            elif folder.failure() and not self.retry and not folder.running():
                self._fail(run, "failed earlier, and is tried again only with --retry")
            else:
                self._todo[name] = run

    def _submit(self) -> bool:
        """Submit all ready runs, most urgent first; returns whether there were any."""
        settled = self._done | (self._given if self.pool.detached else set())
        ready = [
            run
            for run in self._todo.values()
            if all(need.name in settled for need in run.needs.values())
        ]
        if not ready:
            return False
        order = urgency(self.sweep.runs, self.costs)
        jobs = []
        for run in sorted(ready, key=lambda run: -order[run.name]):
            after = [need.name for need in run.needs.values() if need.name not in self._done]
            jobs.append(job_of(run, self.runs_dir, after))
        for job in self.pool.choose(jobs):
            run = self._todo.pop(job.run)
            folder = RunFolder.create(run, self.runs_dir)
            if folder.done:  # by another runner, in the meantime
                self._succeed(run, executed=False)
            elif folder.running() and not self.pool.detached:
                self._elsewhere[run.name] = time.monotonic() + LOOK_AGAIN_S
                self.display.say(f"{run.name} is being run by another process; waiting for it")
            else:
                self._given.add(run.name)
                self.pool.submit(job)
        return True

    def _look_elsewhere(self) -> None:
        """Check the runs of another runner."""
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
                self._fail(run, "failed in another process")
            else:
                self._todo[name] = run  # that process was stopped: resume from its checkpoint

    def _handle(self, event: Event) -> None:
        run = self.sweep.runs[event.job.run]
        if event.kind == "progress":
            self.display.progress(run, event.done, event.total, event.text)
            return
        if event.kind == "noted":
            self.display.say(f"{run.name}: {event.text}")
            return
        self._since.pop(run.name, None)
        if event.kind == "queued":
            self.display.say(f"queued {run.name}: {event.text}")
            return
        if event.kind == "started":
            self._since[run.name] = time.monotonic()
            self.display.started(run)
            return
        self._given.discard(run.name)
        if event.kind in ("done", "found"):
            self._succeed(run, executed=event.kind == "done")
        elif event.kind in ("failed", "cancelled"):
            self._fail(run, event.text, event.kind)
        elif event.kind == "busy":
            self._elsewhere[run.name] = time.monotonic() + LOOK_AGAIN_S
        elif event.kind == "interrupted":
            raise KeyboardInterrupt  # a worker was stopped: stop the sweep likewise
        elif event.kind == "withdrawn":
            self._todo[run.name] = run
            if event.text:
                self.display.say(f"{run.name} is not in the queue yet: {event.text}")
        elif event.kind == "lost":
            self._again(run, event.text)
        elif event.kind == "died":
            self._died(run, event.text)

    def _died(self, run: Run, how: str) -> None:
        """A run that comes further between its deaths may die as often as it likes."""
        folder = RunFolder(self.runs_dir / run.name)
        kept = folder.saved_at()
        deaths, before = self._deaths.get(run.name, (0, kept))
        deaths = deaths + 1 if kept == before else 1
        self._deaths[run.name] = deaths, kept
        if deaths < ATTEMPTS:
            self._again(run, how)
            return
        hint = " (SIGKILL often means that memory ran out)" if "SIGKILL" in how else ""
        stuck = f"{ATTEMPTS} times in a row, without coming further, {how}{hint}"
        folder.mark_failed(f"{stuck}\n\n{folder.log_tail()}")
        self._fail(run, f"{how}{hint}")

    def _again(self, run: Run, how: str) -> None:
        self.display.ended(run, "lost", f"{how.splitlines()[0]}; continuing it in a new one")
        self._todo[run.name] = run

    def _succeed(self, run: Run, executed: bool) -> None:
        folder = RunFolder(self.runs_dir / run.name)
        self._done.add(run.name)
        (self.outcome.executed if executed else self.outcome.found_done).append(run.name)
        wall = folder.read_record().get("wall_s")
        if wall is not None:
            self.costs.learn(run, wall)
        self._tell()
        self.display.ended(run, "done", "")

    def _fail(self, run: Run, why: str, state: str = "failed") -> None:
        self.outcome.failed.append(run.name)
        tail = RunFolder(self.runs_dir / run.name).log_tail(8)
        self.display.ended(run, state, "\n".join([why, *(f"  | {t}" for t in tail.splitlines())]))

    def _tell(self) -> None:
        now = time.monotonic()
        blocked = set().union(*(self.sweep.dependants(name) for name in self.outcome.failed))
        out = self._done | blocked | set(self.outcome.failed)
        left = [run for name, run in self.sweep.runs.items() if name not in out]
        spent = {name: now - since for name, since in self._since.items()}
        seconds, known = remaining(left, spent, self.sweep.runs, self.costs, self.pool.size)
        self.display.overall(len(self._done), len(self.sweep.runs), seconds, known)

    def _stop(self) -> list[str]:
        """Let every active run save; returns their messages. A second Ctrl-C stops immediately.

        There is no timeout: a step of a large model may take minutes, and saving happens after it.
        """
        messages, say_at = [], 0.0
        try:
            messages += self.pool.interrupt()
            while working := [job.run for job in self.pool.jobs if job.do == "run"]:
                if time.monotonic() >= say_at:
                    say_at = time.monotonic() + SAY_EVERY_S
                    ending = f"stopping: waiting for {', '.join(working)} to save"
                    self.display.say(f"{ending} (Ctrl-C again stops at once)")
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
