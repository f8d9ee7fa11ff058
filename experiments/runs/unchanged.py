"""A run goes on with what it began with: its needs are compared whenever it starts."""

from __future__ import annotations

from pathlib import Path

from experiments.runs.contents import fingerprint, hub_revision
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import RUN_NAME


def check_contents(folder: RunFolder) -> None:
    """Compare what a run needs with what it is named after, or began with, and remember the rest.

    So that an interrupted run never mixes two contents. Other runs and hub ids count by name in
    this run's name, so their fingerprints are kept in record.json.

    Raises:
        FileNotFoundError: a path is not there any more.
        ValueError: something else lies there now.
    """
    named = folder.recipe.get("contents", {})
    recorded = folder.read_record().get("contents", {})
    seen: dict[str, str] = {}
    for role, where in folder.recipe["needs"].items():
        path = folder.path.parent / where if RUN_NAME.fullmatch(where) else Path(where)
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


def _content(path: Path, where: str) -> str | None:
    return fingerprint(path) or hub_revision(where)
