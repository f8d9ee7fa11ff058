"""What a recipe names by a path is known by its content, whatever the path is called.

Paths move (another disk, another directory to start from) and what lies there is replaced. So the
name of a run hashes, in place of a path, a fingerprint of what is there: moved weights are the same
weights, others make another run. A run's start compares once more (`RunFolder.check_contents`).

A fingerprint reads little, also of a network of 14 billion parameters:

    *.safetensors           its header, and a few bytes of every tensor
    a shard set             its manifest, which has the hashes of its shards
    config.json             its settings, but not the path that it was loaded from
    tables, texts, images,  all of it up to 16 MiB, else its size and evenly spaced blocks
    configs, LMDBs
    videos, archives        nothing: a folder of videos is a supply from which a curation chooses,
                            and may grow or be mended; the set that is made lists what was taken

What is in the hub, or not there yet, is known by its name alone. What is not there any more keeps
the content that runs in the same folder have seen (``runs/contents.json``): raw videos take
terabytes and are deleted when they are curated, and what was made of them is still that.

No heavy imports: sweeps are planned without torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from datamodules.atomic import write_text
from datamodules.json_files import read_object

MEMORY = "contents.json"
SUFFIXES = (
    ".safetensors", ".json", ".jsonl", ".model", ".txt", ".csv", ".tsv", ".yaml", ".mdb", ".npy",
    ".npz", ".pt", ".png", ".jpg", ".jpeg", ".webp",
)  # fmt: skip
DEEPEST = 4  # folders below the one that was named
WHOLE = 2**24  # bytes of a file up to which all of it is read
BLOCKS, BLOCK = 64, 4096  # what is read of a larger one
SAMPLE = 64  # bytes that are read at three places of a tensor
_OF_THE_RUN = re.compile(
    r"recipe\.yaml|record\.json|done\.json|failed\.txt|log.*\.txt|refused\.csv"
)
_PREVIEWS = "samples/"
_UNFINISHED = ("tb", "checkpoints", "slurm")  # folders of a run that are no result
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def fingerprint(where: str | Path) -> str | None:
    """16 hex digits of what lies at a path; None if nothing that is counted does."""
    path = Path(where)
    if path.is_file():
        return _short([_of_file(path)])
    parts = [f"{name}\0{digest}" for name, digest in sorted(_of_folder(path, path))]
    return _short(parts) if parts else None


def results(run: str | Path) -> dict[str, str]:
    """16 hex digits of everything that counts in a run folder, by relative name; previews do not.

    A shard set is one entry: its manifest and, for each of its shards, whether it is there.
    """
    home = Path(run)
    found = {name: digest[:16] for name, digest in sorted(_of_folder(home, home))}
    kept = {name: each for name, each in found.items() if not name.startswith(_PREVIEWS)}
    return {name: digest + _absent_shards(home / name) for name, digest in kept.items()}


def _absent_shards(folder: Path) -> str:
    """`` without FILE`` if a shard set lacks a shard of its manifest, or has it with another size.

    "" for anything else.
    """
    if not folder.is_dir():
        return ""
    for shard in json.loads((folder / "manifest.json").read_bytes()).get("shards", []):
        tar = folder / str(shard.get("file"))
        if not tar.is_file() or tar.stat().st_size != shard.get("bytes"):
            return f" without {tar.name}"
    return ""


def hub_revision(where: str | Path) -> str | None:
    """The commit of a hub id that this machine's cache has; None if there is none."""
    name = str(where)
    if Path(where).exists() or not _HUB_ID.fullmatch(name):
        return None
    from huggingface_hub.constants import HF_HUB_CACHE

    ref = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "refs" / "main"
    return ref.read_text(encoding="utf-8").strip() if ref.is_file() else None


def remembered(runs: Path) -> dict[str, str]:
    """Fingerprints by absolute path, as they were when the runs of this folder were made.

    Raises:
        ValueError: the file is damaged.
    """
    path = runs / MEMORY
    cure = "remove it: only runs of paths that are not there any more change their names"
    return read_object(path, cure) if path.is_file() else {}


def remember(runs: Path, found: Mapping[str, str]) -> None:
    """Add to what is `remembered`."""
    known = remembered(runs)
    if found.items() - known.items():
        write_text(runs / MEMORY, json.dumps(known | dict(found), indent=1, sort_keys=True))


def _of_folder(folder: Path, top: Path, depth: int = 0) -> Iterator[tuple[str, str]]:
    """(relative name, digest) of every file that counts."""
    try:
        entries = list(os.scandir(folder))
    except OSError:  # not there, no folder, or not to be read: whoever reads it will say so
        return
    names = {entry.name for entry in entries}
    manifest = _manifest(folder) if "manifest.json" in names else None
    if manifest is not None:
        yield folder.relative_to(top).as_posix(), manifest
        return
    run = "recipe.yaml" in names
    for entry in entries:
        if entry.name.startswith(".") or run and _OF_THE_RUN.fullmatch(entry.name):
            continue
        path = folder / entry.name
        if Path(entry.name).suffix.lower() in SUFFIXES and path.is_file():
            yield path.relative_to(top).as_posix(), _of_file(path)
        elif depth < DEEPEST and entry.is_dir() and not (run and entry.name in _UNFINISHED):
            yield from _of_folder(path, top, depth + 1)


def _manifest(folder: Path) -> str | None:
    """Digest of a shard set's manifest; None if it is another kind of file."""
    try:
        text = (folder / "manifest.json").read_bytes()
        entries = json.loads(text, object_hook=_without_place)
    except (OSError, ValueError):
        return None
    if not isinstance(entries, dict) or "index_sha256" not in entries:
        return None
    return _short([json.dumps(entries, sort_keys=True)])


def _without_place(entry: dict[str, Any]) -> dict[str, Any]:
    """Where an encoder lay does not count; its hash does."""
    return {key: value for key, value in entry.items() if key != "folder"}


def _of_file(path: Path) -> str:
    """Digest of one file; of one that cannot be read, of its name alone."""
    hashed = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            config = _config(file.read()) if path.name == "config.json" else None
            hashed.update(config or f"{size}\0".encode())
            for start, length in _places(path, file, size) if config is None else ():
                hashed.update(os.pread(file.fileno(), length, start))
    except OSError:
        hashed.update(path.name.encode())
    return hashed.hexdigest()


def _config(text: bytes) -> bytes | None:
    """A network's config.json without the path that its library notes; None if it is another."""
    try:
        settings = json.loads(text)
    except ValueError:
        return None
    if not isinstance(settings, dict):
        return None
    kept = {key: value for key, value in settings.items() if key != "_name_or_path"}
    return json.dumps(kept, sort_keys=True).encode()


def _places(path: Path, file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of what is read of a file."""
    tensors = _tensors(file, size) if path.suffix == ".safetensors" else None
    if tensors is not None:
        yield from tensors
    elif size <= WHOLE:
        yield 0, size
    else:
        for number in range(BLOCKS):
            yield number * (size - BLOCK) // (BLOCKS - 1), BLOCK


def _tensors(file: BinaryIO, size: int) -> list[tuple[int, int]] | None:
    """The header and some bytes of every tensor of a safetensors file; None if it is damaged."""
    length = int.from_bytes(os.pread(file.fileno(), 8, 0), "little")
    if length > size - 8:
        return None
    try:
        header = json.loads(os.pread(file.fileno(), length, 8))
        ranges = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    found = [(0, 8 + length)]
    for start, end in sorted(ranges):
        for place in (start, (start + end) // 2, max(start, end - SAMPLE)):
            found.append((8 + length + place, min(SAMPLE, end - place)))
    return found


def _short(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
