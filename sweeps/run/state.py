"""The state of a run, read from its folder and, if it is a Slurm job, from the queue.

Any process that can read the folders can query it; no runner is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from experiments.launch.ranks.topology import wanted
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import Run
from sweeps.executors import Unreachable
from sweeps.executors.squeue import Listed, last_job, listed
from sweeps.plan.costs import Costs

STATES = ("done", "running", "queued", "failed", "cancelled", "interrupted", "new")


@dataclass(frozen=True)
class State:
    """One run.

    Args:
        name: of the run.
        state: one of STATES.
        note: why it waits, or its progress message.
        done, total: progress in units of the run; 0 if not reported.
        spent_s: wall time so far, over all attempts.
        left_s: estimated remaining wall time, None if unknown.
        job: its last Slurm job, or "".
        devices: nodes x devices of its launch.
        device_s: seconds over all its devices so far.
        device_left_s: expected seconds over all its devices, None if unknown.
        log: path of its log, None if there is none yet.
        why: the last line of its traceback, or "".
    """

    name: str
    state: str
    note: str
    done: int
    total: int
    spent_s: float
    left_s: float | None
    job: str
    devices: str
    device_s: float
    device_left_s: float | None
    log: Path | None
    why: str


def states(runs: Mapping[str, Run], runs_dir: Path) -> list[State]:
    """All runs of a sweep, in its order."""
    costs = Costs(runs_dir)
    folders = [RunFolder(runs_dir / name) for name in runs]
    jobs = jobs_of(folders)
    return [
        state_of(folder, jobs, costs.estimate(run), wanted(run.recipe))
        for folder, run in zip(folders, runs.values(), strict=True)
    ]


def jobs_of(folders: Sequence[RunFolder]) -> dict[Path, Listed]:
    """Slurm's state of the last job of each folder; queried only if there was a job.

    Without an answer their state is UNKNOWN, and the reason says why.
    """
    ids = {folder.path: last_job(folder.path) for folder in folders}
    if not any(ids.values()):
        return {}
    try:
        entries = listed()
    except Unreachable as silent:
        return {path: Listed(id, "UNKNOWN", str(silent), path) for path, id in ids.items() if id}
    return {entry.folder: entry for entry in entries if ids.get(entry.folder) == entry.id}


def state_of(
    folder: RunFolder,
    jobs: Mapping[Path, Listed],
    expected_s: float | None = None,
    spread: tuple[int, int] = (1, 1),
) -> State:
    """State of one run, with its expected wall time and its nodes and devices per node."""
    record, entry = folder.read_record(), jobs.get(folder.path)
    reached = record.get("progress") or {}
    done, total = reached.get("done", 0), reached.get("total", 0)
    state, note = folder.state(), ""
    spent = record.get("wall_s", 0.0)
    if state == "running":
        note = reached.get("note", "")
    elif state != "done" and entry is not None and entry.live:
        state, note = "queued", str(entry)
    elif state in ("interrupted", "new") and entry is not None and entry.withdrawn:
        note = "waits for what did not finish"
    elif state in ("interrupted", "new") and entry is not None and entry.state == "CANCELLED":
        state, note = "cancelled", f"job {entry.id}"
    elif state != "done" and entry is not None and entry.state == "UNKNOWN":
        note = entry.reason
    left = None if expected_s is None else max(expected_s - spent, 0.0)
    if done:
        left = spent * (total - done) / done
    left = 0.0 if state == "done" else left
    return State(
        name=folder.name,
        state=state,
        note=note,
        done=done,
        total=total,
        spent_s=spent,
        left_s=left,
        job=last_job(folder.path),
        devices="x".join(map(str, spread)),
        device_s=record.get("device_s", 0.0),
        device_left_s=None if left is None else left * prod(spread),
        log=folder.path / "log.txt" if (folder.path / "log.txt").is_file() else None,
        why=(folder.failure().strip().splitlines() or [""])[-1] if state == "failed" else "",
    )
