"""A run goes on with what it began with, and a finished one is used as it was when it ended."""

from __future__ import annotations

import shlex
from pathlib import Path

from datamodules.json_files import read_object
from experiments.runs.contents import fingerprint, hub_revision, results
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import RUN_NAME


def check_contents(folder: RunFolder) -> None:
    """Compare what a run needs with what it is named after, or began with, and remember the rest.

    So that an interrupted run never mixes two contents. Other runs and hub ids count by name in
    this run's name, so their fingerprints are kept in record.json.

    Raises:
        FileNotFoundError: a path is not there any more.
        ValueError: something else lies there now, or in a run that it needs.
    """
    named = folder.recipe.get("contents", {})
    recorded = folder.read_record().get("contents", {})
    seen: dict[str, str] = {}
    for role, where in folder.recipe["needs"].items():
        path = folder.path.parent / where if RUN_NAME.fullmatch(where) else Path(where)
        if RUN_NAME.fullmatch(where):
            check_result(RunFolder(path))
        found, known = _content(path, where), named.get(role) or recorded.get(role)
        if role in named and found is None:
            raise FileNotFoundError(
                f"{path}: not there any more, and {folder.name} needs it as {role}. If it was"
                " moved, start from the recipe's name with the new path: the run keeps its name"
            )
        if found and known and found != known:
            cure = f"remove {folder.path} to begin again"
            if role in named:
                cure = "start from the recipe's name: what is there now makes a run of its own"
            raise ValueError(
                f"{path}: replaced since {folder.name}, which needs it as {role}, began (content"
                f" {known}, now {found}). Put back what was there, or {cure}"
            )
        if found and role not in named:
            seen[role] = found
    if seen.items() - recorded.items():
        folder.record({"contents": seen})


def changed_result(folder: RunFolder) -> str:
    """What of a finished run's results is gone or replaced since it ended, and the cure; "" if
    nothing is, or its done.json does not tell (older ones).

    Raises:
        ValueError: done.json is damaged.
    """
    path = folder.path / "done.json"
    if not folder.done or not path.stat().st_size:
        return ""
    ended = read_object(path, "remove it, and execute the run again").get("results") or {}
    found = results(folder.path)
    name = next((name for name in ended if found.get(name) != ended[name]), None)
    if name is None:
        return ""
    now = found.get(name, "")
    what = f"is{now[16:]}" if now[16:] else "has been replaced" if now else "is gone"
    part = folder.path / Path(name).parts[0]
    removed = shlex.join(["rm", "-rf", str(part), str(path)])
    return (
        f"{folder.path / name}: it {what} since {folder.name} ended. Put back what was there, or"
        f" make it again: {removed}; {folder.command}"
    )


def check_result(folder: RunFolder) -> None:
    """Raises ValueError if a result of a finished run is not what it was (`changed_result`)."""
    if changed := changed_result(folder):
        raise ValueError(changed)


def _content(path: Path, where: str) -> str | None:
    return fingerprint(path) or hub_revision(where)
