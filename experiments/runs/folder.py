"""A run folder: the only state of a run.

====================  ============================================================================
recipe.yaml           the resolved recipe; its needs are run names beside this folder, or paths
log.txt               the log of all attempts
tb/ checkpoints/      TensorBoard events; ``last.ckpt``, from which an interrupted run continues
student/ shards/ ...  results, by verb
record.json           wall time, memory, counters, versions
lease                 locked by the process that executes the run (see experiments.runs.lock)
slurm/                job.json and Slurm's own logs, if a job executes the run
failed.txt            the traceback; kept until a retry
done.json             written last, by rename: its presence means "done"; has digests of the results
====================  ============================================================================

No heavy imports: planning reads hundreds of folders without torch.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

from datamodules.atomic import write_text
from datamodules.json_files import read_object
from experiments.runs.contents import remember, results
from experiments.runs.lock import Busy as Busy
from experiments.runs.lock import Lease, job_is_gone
from experiments.runs.recipe import RUN_NAME, VERBS, Run, run_name
from experiments.runs.yaml_reader import dump_yaml, read_yaml

STATES = ("done", "running", "failed", "interrupted", "new")


def runs_dir(chosen: str | Path | None = None) -> Path:
    """Where runs live: what was chosen, else the environment's RUNS_DIR, else ``runs``."""
    return home_path(str(chosen or os.environ.get("RUNS_DIR") or "runs")).resolve()


def home_path(text: str) -> Path:
    """A path as the user writes it; shells leave the ``~`` of ``--runs=~/runs`` as it is."""
    return Path(text).expanduser()


class RunFolder:
    """One run's folder.

    ``on_progress(done, total, note)`` hears how far the verb has come; ``reached`` is what it was
    told last, and goes into record.json now and then for those who watch from elsewhere.
    """

    def __init__(self, path: str | Path) -> None:
        given = Path(os.path.abspath(path))
        self.path = given.parent.resolve() / given.name  # a run that is a link has its own name
        self.on_progress: Callable[[int, int, str], None] | None = None
        self.reached: dict[str, Any] = {}
        self._recording = threading.Lock()

    @classmethod
    def create(cls, run: Run, runs: Path, again: bool = True) -> RunFolder:
        """The folder of a run with its recipe.

        One that is there already may differ in `launch`. It is replaced if ``again`` says so, but
        never under the hands of a process that works on the run, or will when Slurm starts it.
        """
        folder = cls(runs / run.name)
        if known := run.recipe.get("contents"):
            remember(runs, {run.recipe["needs"][role]: found for role, found in known.items()})
        if folder.done:
            folder._follow_moved(run.recipe)
            return folder
        file, recipe = folder.path / "recipe.yaml", dump_yaml(run.recipe)
        before = file.read_text(encoding="utf-8") if file.is_file() else ""
        if not before or (again and recipe != before and not folder.taken()):
            folder.path.mkdir(parents=True, exist_ok=True)
            write_text(file, recipe)
        return folder

    def _follow_moved(self, now: Mapping[str, Any]) -> None:
        """Note where the same content lies now, for those who look for it through this run."""
        if "contents" in now and self.recipe["needs"] != now["needs"]:
            moved = self.recipe | {"needs": now["needs"]}
            write_text(self.path / "recipe.yaml", dump_yaml(moved))
            self.__dict__["recipe"] = moved

    @classmethod
    def of_recipe(cls, file: Path, runs: Path) -> RunFolder:
        """The folder that a resolved recipe describes, wherever its file lies."""
        recipe = read_resolved(file)
        folder = cls(runs / run_name(recipe))
        if not (folder.path / "recipe.yaml").is_file():
            folder.path.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder.path / "recipe.yaml")
        return folder

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe, a plain tree.

        Raises:
            ValueError: it is not the recipe that the folder is named after.
        """
        file = self.path / "recipe.yaml"
        recipe = read_resolved(file)
        if RUN_NAME.fullmatch(self.name) and run_name(recipe) != self.name:
            raise ValueError(
                f"{file}: has been changed: its settings are those of {run_name(recipe)}, not of"
                f" {self.name}. Only launch may be edited; put the rest back, or give other"
                " settings to the recipe's name, which makes a run of its own"
            )
        return recipe

    @property
    def needs(self) -> dict[str, RunFolder]:
        """The runs that this one needs, by role; outside folders are not among them."""
        found = self.recipe["needs"].items()
        beside = self.path.parent
        return {role: RunFolder(beside / n) for role, n in found if RUN_NAME.fullmatch(n)}

    def need(self, role: str) -> Path:
        """Where a need's results are: a run folder beside this one, or a path or hub id as given,
        with ``~`` expanded.

        A run must be done. Raises KeyError for a role the recipe does not have (our mistake),
        FileNotFoundError for a run that is not there yet, ValueError for one whose recipe.yaml has
        been changed.
        """
        where = self.recipe["needs"][role]
        if not RUN_NAME.fullmatch(where):
            return Path(where).expanduser()
        folder = self.needs[role]
        if not folder.done:
            raise FileNotFoundError(
                f"{self.name}: its {role} {where} is {folder.state()}, not done"
            )
        if (folder.path / "recipe.yaml").is_file():
            _ = folder.recipe  # refuses a changed one
        return folder.path

    def identity(self, role: str) -> str:
        """A need as manifests name it: a run's name, else the content of its path, if known."""
        where = self.recipe["needs"][role]
        return self.recipe.get("contents", {}).get(role, Path(where).name)

    def closure(self) -> list[RunFolder]:
        """The runs behind this one and itself; a need comes before what needs it."""
        found: dict[str, RunFolder] = {}
        for role, need in self.needs.items():
            if not (need.path / "recipe.yaml").is_file():
                raise FileNotFoundError(
                    f"{need.path}: there is no such run, and {self.name} needs it as {role};"
                    " start from the recipe's name, or copy that run's folder there"
                )
            found |= {folder.name: folder for folder in need.closure()}
        return list((found | {self.name: self}).values())

    @property
    def command(self) -> str:
        """The command line that executes this run alone."""
        path = shlex.quote(str(self.path))
        return f"python -m experiments {self.recipe['verb']} {path}"

    @property
    def done(self) -> bool:
        return (self.path / "done.json").is_file()

    def state(self) -> str:
        """One of STATES, read from the disk."""
        if self.done:
            return "done"
        if self.running():
            return "running"
        if (self.path / "failed.txt").is_file():
            return "failed"
        return "interrupted" if (self.path / "log.txt").is_file() else "new"

    def running(self) -> bool:
        """Whether a live process holds the lock."""
        return Lease(self.path).held()

    def taken(self) -> str:
        """The process that executes the run, or its job in Slurm's queue; "" if none."""
        if self.running():
            return str(Lease(self.path).holder() or "another process")
        try:
            job = json.loads((self.path / "slurm" / "job.json").read_text(encoding="utf-8"))["job"]
        except (OSError, ValueError, KeyError):
            return ""
        gone = job_is_gone(job, unknown=shutil.which("squeue") is None)
        return "" if gone else f"Slurm job {job}"

    def saved_at(self) -> float:
        """Unix time of the last saved progress (checkpoint or shard); 0 if none."""
        kept = [self.path / "checkpoints" / "last.ckpt", *(self.path / "shards").glob("*.tar")]
        return max((path.lstat().st_mtime for path in kept if path.exists()), default=0.0)

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder. Raises Busy, naming the holder, when another process has it."""
        return Lease(self.path).hold()

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Report progress to the executor; verbs may call this as often as they like."""
        self.reached = {"done": done, "total": total, "note": note}
        if self.on_progress is not None:
            self.on_progress(done, total, note)

    def read_record(self) -> dict[str, Any]:
        """The content of record.json, empty when there is none.

        Raises:
            ValueError: it is damaged.
        """
        path = self.path / "record.json"
        cure = "remove it: the run's times and versions are lost with it, its results are not"
        return read_object(path, cure) if path.is_file() else {}

    def record(self, update: Mapping[str, Any]) -> None:
        """Merge into record.json; mappings such as ``counters`` are merged key by key."""
        with self._recording:
            record = self.read_record()
            for key, value in update.items():
                both = isinstance(value, Mapping) and isinstance(record.get(key), dict)
                record[key] = record[key] | dict(value) if both else value
            write_text(self.path / "record.json", json.dumps(record, indent=1, sort_keys=True))

    def size(self) -> int:
        """Bytes on disk in this folder."""
        return sum(path.lstat().st_size for path in self.path.rglob("*") if path.is_file())

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the log."""
        try:
            with open(self.path / "log.txt", "rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 200 * lines))
                return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def failure(self) -> str:
        """Why the run failed, or ""."""
        path = self.path / "failed.txt"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def mark_failed(self, why: str) -> None:
        write_text(self.path / "failed.txt", f"{why.rstrip()}\n")

    def clear_failure(self) -> None:
        (self.path / "failed.txt").unlink(missing_ok=True)

    def mark_done(self) -> None:
        self.clear_failure()
        done = {"run": self.name, "ended": time.ctime(), "results": results(self.path)}
        write_text(self.path / "done.json", json.dumps(done, indent=1))

    def renew_result(self, name: str) -> None:
        """Note that a result of the finished run was replaced on purpose."""
        path = self.path / "done.json"
        done = read_object(path, "remove it, and execute the run again")
        if name in done.get("results", {}):
            done["results"][name] = results(self.path)[name]
            write_text(path, json.dumps(done, indent=1))


def read_resolved(file: Path) -> dict[str, Any]:
    """A resolved recipe from its file. Raises ValueError when it is not one."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no resolved recipe there")
    recipe = read_yaml(file)
    recipe = recipe if isinstance(recipe, dict) else {}
    lacks = [k for k in ("recipe", "verb", "seed", "needs") if k not in recipe]
    if lacks or recipe["verb"] not in VERBS:
        raise ValueError(
            f"{file}: not a resolved recipe (lacks {', '.join(lacks) or 'a known verb'});"
            " a recipe of the library is run by its name: python -m experiments fit <recipe>"
        )
    return recipe
