"""Cost of the Stage-2 training behind a score run, found through the needs.

The needs of a score run lead to the clips (a sample run), to the Stage-3 training and to the
Stage-2 training that it started from, whose pairs, if it needs any, are Stage-2 cost as well.
Where a cell also scores what Stage 3 started from, that student is the Stage 2 itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from experiments.runs.folder import RunFolder
from experiments.runs.recipe import Run

PREFIX = "cost."


def of_verb(run: Run | None, verb: str) -> list[Run]:
    """The needs of a run that are of one verb."""
    return [need for need in run.needs.values() if need.verb == verb] if run else []


def samples_of(score: Run) -> Run | None:
    """The sample run that a score run judges; None where it judges something else."""
    return next(iter(of_verb(score, "sample")), None)


def _student(run: Run | None) -> Run | None:
    """The training run that provides the student of a sample run or a stage."""
    trained = {r: need for r, need in run.needs.items() if need.verb == "fit"} if run else {}
    return trained.get("student") or next(iter(trained.values()), None)


def _stage2(score: Run, beside: Iterable[Run]) -> Run | None:
    """The Stage-2 training behind a score run of a cell that has these score runs."""
    student = _student(samples_of(score))
    continued = (_student(_student(samples_of(other))) for other in beside)
    if student and student.name in {run.name for run in continued if run}:
        return student
    return _student(student)


def of_run(
    score: Run, runs_dir: Path, beside: Iterable[Run] = ()
) -> dict[str, float | None] | None:
    """Device-seconds (pairs included, and these alone), stored bytes and updates of Stage 2.

    ``beside`` are the cell's score runs. A Stage 2 of no updates has no time and no updates (None).
    None while Stage 2, or pairs that it needs, are not finished or recorded no time.
    """
    stage2 = _stage2(score, beside)
    if stage2 is None or not RunFolder(runs_dir / stage2.name).done:
        return None
    updates = stage2.recipe["fit"].get("steps")
    if updates == 0:
        return {"seconds": None, "pairs_seconds": None, "storage": 0, "steps": None}
    pairs = [runs_dir / need.name for need in of_verb(stage2, "pairs")]
    seconds = [device_seconds(folder) for folder in (runs_dir / stage2.name, *pairs)]
    if None in seconds:
        return None
    stored = sum(path.stat().st_size for folder in pairs for path in folder.rglob("*.tar"))
    return {
        "seconds": sum(seconds), "pairs_seconds": float(sum(seconds[1:])),
        "storage": stored, "steps": updates,
    }  # fmt: skip


def device_seconds(run: Path) -> float | None:
    """Device-seconds of a finished run; None when it is not done or recorded none."""
    folder = RunFolder(run)
    seconds = folder.read_record().get("device_s") if folder.done else None
    return None if seconds is None else float(seconds)
