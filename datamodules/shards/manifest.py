"""Reading the manifest.json of a complete shard set: what every reader of a set begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.json_files import read_object

VERSION = 1
OWN = ("version", "kind", "count", "shards", "fields", "index_sha256")
"""Entries that the writer makes itself; the others describe the set's source."""
_SECTIONS = ("autoencoder", "text_encoder", "normalisation")
_CURE = "write the set again"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the shard set in `folder`.

    Raises:
        FileNotFoundError: there is none (the writer did not finish).
        ValueError: it is damaged, or of another version.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        if (folder.parent / "manifest.json").is_file():
            raise FileNotFoundError(
                f"{path} is missing: {folder.parent} is a shard set itself; give the folder that"
                f" it lies in, {folder.parent.parent}"
            )
        raise FileNotFoundError(
            f"{path} is missing: not a shard set, or its writer was stopped; "
            "run the verb that writes it again"
        )
    manifest = read_object(path, _CURE, OWN)
    if manifest["version"] != VERSION:
        raise ValueError(
            f"{path} has version {manifest['version']}, this code reads {VERSION}: {_CURE}"
        )
    if wrong := _wrong_entry(manifest):
        raise ValueError(f"{path} is damaged: {wrong} is not as a writer makes it; {_CURE}")
    return manifest


def _wrong_entry(manifest: dict[str, Any]) -> str:
    """The first entry of another type than the writer's; "" if all are right."""
    count, fields, shards = (manifest[name] for name in ("count", "fields", "shards"))
    if type(count) is not int:
        return "count"
    if not isinstance(fields, dict) or not all(map(_is_field, fields.values())):
        return "fields"
    if not isinstance(shards, list) or not all(map(_is_shard, shards)):
        return "shards"
    found = ((name, manifest.get(name)) for name in _SECTIONS)
    return next((name for name, value in found if not isinstance(value, dict | None)), "")


def _is_field(field: Any) -> bool:
    shape = field.get("shape") if isinstance(field, dict) else None
    whole = isinstance(shape, list) and all(type(size) is int for size in shape)
    return whole and isinstance(field.get("dtype"), str)


def _is_shard(shard: Any) -> bool:
    if not isinstance(shard, dict):
        return False
    numbers = all(type(shard.get(name)) is int for name in ("count", "bytes"))
    return numbers and all(isinstance(shard.get(name), str) for name in ("file", "sha256"))
