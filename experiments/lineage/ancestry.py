"""The runs behind a result: recipe, code, data, device, seed and cost of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from datamodules.shards.manifest import read_manifest
from experiments.runs.contents import fingerprint
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import RUN_NAME
from experiments.runs.unchanged import changed_result

_NOT_SETTINGS = ("recipe", "verb", "seed", "needs", "contents", "launch")
_RECORDED = (
    "code", "versions", "device", "devices", "started", "ended", "wall_s", "device_s",
    "peak_memory_bytes", "counters",
)  # fmt: skip


def ancestry(folders: Iterable[RunFolder]) -> dict[str, dict[str, Any]]:
    """Every run behind these and these themselves, by name; each run comes before its needs.

    A need is a run's name or, for a path or hub id, what lies there (`_outside`). A run that is
    not there any more has only its state, "missing".

    Raises:
        ValueError: a recipe was edited, or a record or manifest is damaged; names file and cure.
    """
    found: dict[str, dict[str, Any]] = {}
    waiting = list(folders)
    while waiting:
        folder = waiting.pop(0)
        if folder.name not in found:
            found[folder.name] = _run(folder)
            waiting += folder.needs.values() if found[folder.name]["state"] != "missing" else []
    return found


def _run(folder: RunFolder) -> dict[str, Any]:
    if not (folder.path / "recipe.yaml").is_file():
        return {"folder": str(folder.path), "state": "missing"}
    recipe, record = folder.recipe, folder.read_record()
    return {
        "folder": str(folder.path),
        "state": folder.state(),
        "changed": changed_result(folder),
        "recipe": recipe["recipe"],
        "verb": recipe["verb"],
        "scale": recipe.get("launch", {}).get("scale", ""),
        "seed": recipe["seed"],
        "settings": {key: value for key, value in recipe.items() if key not in _NOT_SETTINGS},
        **{key: record[key] for key in _RECORDED if key in record},
        "data": _data(folder),
        "needs": {
            role: where if RUN_NAME.fullmatch(where) else _outside(folder, role, where)
            for role, where in recipe["needs"].items()
        },
    }


def _data(folder: RunFolder) -> dict[str, Any]:
    """The run's complete shard set as its manifest describes it, without the list of shards."""
    shards = folder.path / "shards"
    if not (shards / "manifest.json").is_file():
        return {}
    manifest = read_manifest(shards)
    return manifest | {"shards": len(manifest["shards"]), "fields": list(manifest["fields"])}


def _outside(folder: RunFolder, role: str, where: str) -> dict[str, Any]:
    """A path or hub id that a run needs, its content then, and whether that lies there today."""
    begun = folder.read_record().get("contents", {}).get(role)
    known = folder.recipe.get("contents", {}).get(role, begun)
    today = fingerprint(folder.need(role))
    state = "not found here" if today is None else "there"
    if known and today:
        state = "unchanged" if today == known else f"replaced (content {today} today)"
    return {"path": where, "content": known, "state": state}
