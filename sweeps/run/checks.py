"""Checks of all recipes before any run starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.runs.recipe import Run
from sweeps.executors import Executor, Job

POLL_S = 0.25
ATTEMPTS = 2


class Refused(ValueError):
    """Some recipes do not pass their check, or finished runs have changed; nothing was started.

    Holds one message for each.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n\n".join(problems))


def check(runs: Mapping[str, Run], runs_dir: Path, pool: Executor) -> None:
    """Check every recipe by its verb and by the executor.

    Raises Refused with all errors, each with the recipe's name.
    """
    problems: dict[str, str] = {}
    waiting: list[Job] = []
    for run in runs.values():
        waiting.append(Job("check", run.name, run.recipe, slurm=run.slurm))
        problem = pool.problem(job_of(run, runs_dir))
        if problem:
            problems[run.name] = problem
    deaths: Counter[str] = Counter()
    while waiting or pool.jobs:
        for job in pool.choose(waiting):
            waiting.remove(job)
            pool.submit(job)
        for event in pool.poll(POLL_S):
            name = event.job.run
            if event.kind == "died":
                deaths[name] += 1
                if deaths[name] < ATTEMPTS:
                    waiting.append(event.job)
                    continue
            if event.text:
                problems[name] = event.text
    if problems:
        raise Refused(
            [
                f"{runs[name].recipe['recipe']} ({name}): {problems[name]}"
                for name in runs
                if name in problems
            ]
        )


def job_of(run: Run, runs_dir: Path, after: Sequence[str] = ()) -> Job:
    """The job that executes a run."""
    return Job("run", run.name, run.recipe, runs_dir / run.name, run.slurm, tuple(after))
