"""What lies at a path: a run, or something that a run made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.curation.text_lists import read_records
from experiments.runs.config import nearest
from experiments.runs.folder import RunFolder

_CURE = (
    "explain reads what lies in run folders, and the records.csv of a table: give a path in your"
    " runs folder; what was copied or exported from there is explained by its original"
)
_TABLE_CURE = "make it again: python -m sweeps table"


@dataclass(frozen=True)
class Subject:
    """What is explained.

    Args:
        what: in words.
        runs: that made it.
        facts: read from the file itself, by name; JSON values.
    """

    what: str
    runs: list[RunFolder]
    facts: dict[str, Any]


def subject_of(path: Path, labels: Sequence[str], runs_dir: Path) -> Subject:
    """What lies at a path.

    Args:
        path: a run folder, anything in one, ``<shard>.tar/<key>``, or a table's records.csv.
        labels: ``column=value`` that choose lines of a records.csv.
        runs_dir: where the runs of a records.csv live.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is damaged, in no run folder, or no line has these labels.
    """
    path = path.absolute()
    if path.is_file() and path.name == "records.csv":
        return _cell(path, labels, runs_dir)
    if labels:
        raise ValueError(f"{path}: {labels[0]} chooses from a records.csv; leave it out")
    shard = path.parent if path.parent.suffix == ".tar" else path
    if not shard.exists():
        raise FileNotFoundError(f"{path}: there is nothing; {_CURE}")
    folder = _run_folder(path)
    inner = path.relative_to(folder.path).parts
    if not inner:
        return Subject("run", [folder], {})
    what, facts = _part(folder, path, inner)
    return Subject(what, [folder], {"file": "/".join(inner)} | facts)


def _run_folder(path: Path) -> RunFolder:
    """The run folder around a path. Raises ValueError if there is none."""
    for parent in (path, *path.parents):
        if (parent / "recipe.yaml").is_file():
            folder = RunFolder(parent)
            _ = folder.recipe  # refuses one that was edited, or is none of ours
            return folder
    raise ValueError(f"{path}: it lies in no run folder (none with a recipe.yaml); {_CURE}")


def _part(folder: RunFolder, path: Path, inner: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """(what it is, facts) of something in a run folder."""
    if path.parent.suffix == ".tar":
        return "clip", _sample(folder, path.name, path.parent.name)
    if inner[0] == "shards" and path.suffix == ".tar":
        return "shard", _shard(folder, path.name)
    if inner[0] == "videos" and path.suffix == ".mp4":
        return "clip", _sample(folder, path.stem) | _video(path)
    if path.suffix == ".ckpt" and path.is_file():
        return "checkpoint", _checkpoint(path)
    if path.suffix == ".safetensors":
        return "weights", _weights(path)
    return "checkpoint" if inner[0] == "checkpoints" else "result", {}


def _shard(folder: RunFolder, name: str) -> dict[str, Any]:
    from datamodules.shards.reader import open_shards

    shards = open_shards(folder.path / "shards")
    listed = {shard["file"]: shard for shard in shards.manifest["shards"]}
    if name not in listed:
        raise ValueError(
            f"{shards.folder / name}: manifest.json lists no such shard{nearest(name, listed)};"
            f" remove it, or make the set again: {folder.command}"
        )
    shards.verify([name])
    return {key: listed[name][key] for key in ("count", "bytes", "sha256")}


def _sample(folder: RunFolder, key: str, shard: str | None = None) -> dict[str, Any]:
    from datamodules.shards.reader import open_shards

    shards = open_shards(folder.path / "shards")
    keys = shards.keys
    if key not in keys:
        raise ValueError(
            f"{folder.path}: the run has no clip {key!r}{nearest(key, keys)}; its {len(keys)} clips"
            f" are {keys[0]} to {keys[-1]}"
        )
    number = keys.index(key)
    if shard not in (None, shards.file_of(number)):
        raise ValueError(f"{shards.folder / shard}: clip {key!r} is in {shards.file_of(number)}")
    return {"key": key, "shard": shards.file_of(number), "info": shards.read(number, [])["info"]}


def _video(path: Path) -> dict[str, Any]:
    import av

    with av.open(str(path)) as container:  # refuses one that was cut off
        return {"frames": container.streams.video[0].frames}


def _checkpoint(path: Path) -> dict[str, Any]:
    from callbacks.checkpointing import AtomicCheckpointIO

    return {"step": AtomicCheckpointIO().load_checkpoint(path).get("global_step")}


def _weights(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    from experiments.runs.contents import fingerprint

    with safe_open(path, "np") as file:  # refuses one that was cut off
        return {"tensors": len(list(file.keys())), "content": fingerprint(path)}


def _cell(path: Path, labels: Sequence[str], runs_dir: Path) -> Subject:
    """The score runs behind the lines of a records.csv that have all labels."""
    records = list(read_records(path, ("folder",), _TABLE_CURE))
    wrong = next((record.problem for record in records if record.problem), "")
    if wrong or not records:
        raise ValueError(f"{path} is damaged: {wrong or 'it has no line'}; {_TABLE_CURE}")
    lines = [record.values for record in records]
    for label in labels:
        column, _, value = label.partition("=")
        if column not in lines[0]:
            there = ", ".join(lines[0])
            hint = f"{nearest(column, lines[0])} (there are: {there})"
            raise ValueError(f"{path}: {label}: no such column{hint}")
        values = dict.fromkeys(line[column] for line in lines)
        if value not in values:
            there = ", ".join(values)
            raise ValueError(f"{path}: {label}: no line left has it (there are: {there})")
        lines = [line for line in lines if line[column] == value]
    names = dict.fromkeys(line["folder"] for line in lines)
    folders = [RunFolder(runs_dir / name) for name in names]
    if gone := [each.name for each in folders if not (each.path / "recipe.yaml").is_file()]:
        raise FileNotFoundError(f"{path}: its run {gone[0]} is not in {runs_dir}; give --runs")
    return Subject("cell", folders, {"file": path.name, "values": lines})
