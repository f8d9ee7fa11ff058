"""Why a run is in its state, and the command that continues it."""

from __future__ import annotations

import time
from pathlib import Path

from experiments.runs.config import nearest
from experiments.runs.folder import RunFolder
from experiments.runs.lock import Lease
from sweeps.executors.squeue import ended_as, last_job, last_words
from sweeps.run.state import jobs_of, state_of

_LINES = 20


def find(runs_dir: Path, asked: str) -> RunFolder:
    """The run given by a name, a prefix of one, or a folder.

    Raises FileNotFoundError naming what there is, when none or several are.
    """
    if (Path(asked) / "recipe.yaml").is_file():
        return RunFolder(asked)
    names = sorted(path.parent.name for path in runs_dir.glob("*/recipe.yaml"))
    meant = [name for name in names if name == asked] or [n for n in names if n.startswith(asked)]
    if len(meant) != 1:
        few = f" (it may be: {', '.join(meant)})" if meant else nearest(asked, names)
        raise FileNotFoundError(f"{runs_dir}: {len(meant)} runs are called {asked!r}{few}")
    return RunFolder(runs_dir / meant[0])


def explain(folder: RunFolder, rerun: str) -> str:
    """A full description of a run's state; ``rerun`` is the command that runs its sweep."""
    jobs = jobs_of([folder])
    found = state_of(folder, jobs)
    parts = [f"{folder.name}: {' '.join(filter(None, [found.state, found.note]))}"]
    holder = Lease(folder.path).holder()
    if found.state == "running" and holder:
        parts.append(f"by {holder}")
    if found.job and found.state != "done":
        entry = jobs.get(folder.path)
        ended = f"{entry}, {entry.reason}" if entry else ended_as(found.job).lower()
        parts.append(f"Slurm job {found.job}: {ended}")
    parts += _section("failed.txt", "\n".join(folder.failure().splitlines()[-_LINES:]))
    if found.state not in ("done", "new"):
        parts += _section("log.txt", folder.log_tail(_LINES))
    if found.job and found.state in ("failed", "interrupted"):
        parts += _section("what Slurm's step said", last_words(folder.path, last_job(folder.path)))
    waits = [f"  {role}: {n.name} ({n.state()})" for role, n in folder.needs.items() if not n.done]
    if waits:
        parts += ["it waits for", *waits]
    if found.state not in ("done", "running", "queued"):
        parts += ["", *_resume(folder, rerun)]
    return "\n".join(parts)


def _section(title: str, text: str) -> list[str]:
    return ["", f"{title}:", *(f"  | {line}" for line in text.splitlines())] if text.strip() else []


def _resume(folder: RunFolder, rerun: str) -> list[str]:
    last = folder.path / "checkpoints" / "last.ckpt"
    start = "start"
    if last.exists():
        start = f"go on from {last}, saved {time.ctime(last.stat().st_mtime)}"
    again = f"{rerun} --retry" if folder.failure() else rerun
    return [
        f"to {start}{', when the cause is mended' if folder.failure() else ''}:",
        f"  {again}",
        "or this run alone:",
        f"  {folder.command}",
    ]
