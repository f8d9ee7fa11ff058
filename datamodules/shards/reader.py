"""Shards: webdataset tars with a manifest, the only format of data that a run reads or writes.

A shard set is a local folder

    000000.tar ...   webdataset tars, members `key.latents.npy`, `key.text.npy`, ..., `key.json`
    negative.npy     text embedding [L, D] of the negative prompt (absent where there is none)
    index.json       offsets of all members: {file: {key: {member: [offset, bytes]}}}
    manifest.json    what all this is; written last, by rename; present means "complete"

Fields (all samples of a set have the same ones, with one shape and dtype each):

    latents     [F, C, H, W]     float16 or float32   normalised latent frames
    text        [L, D]           float16 or float32   prompt embedding; stored without its padding
    video       [T, H, W, c]     uint8                pixels
    state       [T, 4]           float32              true x, y [px], vx, vy [px/frame]
    poses       [F, 3, 4]        float32              cameras (datamodules/cameras.py)
    intrinsics  [F, 4]           float32              fx, fy, cx, cy in fractions of the image
    trajectory  [S, F, C, H, W]  float16 or float32   a teacher's trajectory, noise first, x0 last

The rows of `text` beyond a prompt's tokens are zero; not stored, restored on reading.
At Wan's size (float16) a clip of 21 frames takes 4.0 MiB, each token of its caption 8 KiB.

Any webdataset reader iterates the tars; `ShardReader` adds random access through the index, which
an exactly resumable order needs and webdataset lacks (its issue 234). Equal input gives equal
bytes: headers carry no time and no user. Reading never unpickles.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.shards.manifest import read_manifest
from datamodules.shards.npy_tar import (
    Index,
    decode_array,
    decode_fields,
    decode_info,
    local_folder,
    sha256,
)
from datamodules.shards.shard_set import KINDS
from datamodules.shards.writer import ShardWriter

__all__ = ["KINDS", "ShardReader", "ShardWriter", "open_shards", "require"]


def open_shards(folder: Path | str) -> ShardReader:
    """The complete shard set in `folder`; the errors are those of `ShardReader`."""
    return ShardReader(folder)


class ShardReader(Sequence[dict[str, Any]]):
    """A shard set by number: `reader[i]` is {"key", "caption", "info", field: array, ...}.

    Opening makes the cheap checks: the manifest's version, every file and its size, the index's
    hash; `verify()` also hashes the tars. Holds no open file, so it can be forked and pickled.
    """

    def __init__(self, folder: Path | str) -> None:
        """Open `folder`.

        Raises:
            FileNotFoundError: no manifest (the writer did not finish), or a missing shard.
            ValueError: another version, a truncated shard, a damaged manifest or index.
        """
        self.folder = local_folder(folder)
        self.manifest = read_manifest(self.folder)
        index = _read_index(self.folder, self.manifest["index_sha256"])
        for shard in self.manifest["shards"]:
            self._check_file(shard)
        self._places = [
            (shard["file"], key, members)
            for shard in self.manifest["shards"]
            for key, members in index[shard["file"]].items()
        ]
        if len(self._places) != self.manifest["count"]:
            raise ValueError(
                f"{self.folder}/index.json lists {len(self._places)} samples, manifest.json "
                f"{self.manifest['count']}: write the shards again"
            )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        return self.read(index, self.fields)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the arrays that every sample has."""
        return tuple(self.manifest["fields"])

    @property
    def keys(self) -> list[str]:
        """The samples' keys, in stored order."""
        return [key for _, key, _ in self._places]

    @property
    def bytes(self) -> int:
        """Size of the tars."""
        return sum(shard["bytes"] for shard in self.manifest["shards"])

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that depend on the content of every tar."""
        text = "".join(shard["sha256"] for shard in self.manifest["shards"])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def negative(self) -> np.ndarray | None:
        """[L, D] text embedding of the negative prompt, where the set has one."""
        path = self.folder / "negative.npy"
        return decode_array(path.read_bytes(), str(path)) if path.exists() else None

    def read(self, index: int, fields: Sequence[str]) -> dict[str, Any]:
        """Sample `index` with only `fields` among its arrays.

        Raises:
            ValueError: the stored sample is corrupt; names its key and shard.
        """
        file, _, _ = self._places[index]
        with open(self.folder / file, "rb", buffering=0) as tar:
            return self._decode(
                index, fields, lambda offset, size: os.pread(tar.fileno(), size, offset)
            )

    def read_all(self, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
        """All samples in stored order, hashing each tar on the way.

        Raises:
            ValueError: a corrupt sample (its key is named), or a tar with another hash.
        """
        first = 0
        for shard in self.manifest["shards"]:
            data = (self.folder / shard["file"]).read_bytes()
            view = memoryview(data)
            for index in range(first, first + shard["count"]):
                yield self._decode(index, fields, lambda offset, size: view[offset : offset + size])  # noqa: B023
            first += shard["count"]
            self._check_hash(shard, hashlib.sha256(data).hexdigest())

    def file_of(self, index: int) -> str:
        """Name of the tar that holds sample `index`."""
        return self._places[index][0]

    def verify(self, files: Collection[str] | None = None) -> None:
        """Hash these tars, or all; ValueError naming the first that differs from the manifest."""
        for shard in self.manifest["shards"]:
            if files is None or shard["file"] in files:
                self._check_hash(shard, sha256(self.folder / shard["file"]))

    def _check_hash(self, shard: dict[str, Any], found: str) -> None:
        if found != shard["sha256"]:
            raise ValueError(
                f"{self.folder / shard['file']} has changed since it was written "
                f"(sha256 {found[:12]}, manifest {shard['sha256'][:12]}): fetch or write it again"
            )

    def _check_file(self, shard: dict[str, Any]) -> None:
        path = self.folder / shard["file"]
        if not path.is_file():
            raise FileNotFoundError(
                f"shard {path} of manifest.json is missing: fetch it, or write the set again"
            )
        found = path.stat().st_size
        if found != shard["bytes"]:
            raise ValueError(
                f"shard {path} has {found} bytes, manifest.json says {shard['bytes']} (truncated "
                "copy?): fetch it again, or write the set again"
            )

    def _decode(
        self, index: int, fields: Sequence[str], read: Callable[[int, int], Any]
    ) -> dict[str, Any]:
        file, key, members = self._places[index]
        where = f"sample {key!r} in {self.folder / file}"
        info = decode_info(bytes(read(*members["json"])), where)
        wanted = {name: self.manifest["fields"][name] for name in fields}
        arrays = decode_fields(members, wanted, read, where)
        return {"key": key, "caption": info["caption"], "info": info, **arrays}


def require(shards: ShardReader, **expected: Any) -> None:
    """Refuse a shard set that the caller cannot use, before anything is trained on it.

    Args:
        shards: the set.
        expected: for a field, its shape with None where any size will do, e.g.
            `latents=(None, 16, 4, 4)`; for another manifest entry, its value, or a set of values
            of which one must hold.

    Raises:
        ValueError: names manifest, entry, both values and the cure.
    """
    manifest = shards.manifest
    for name, want in expected.items():
        where = f"{shards.folder / 'manifest.json'} says {name}"
        cure = "use shards made for this recipe, or change the recipe's entry"
        if name in manifest["fields"]:
            found = manifest["fields"][name]["shape"]
            fits = len(found) == len(want) and all(
                w in (None, f) for f, w in zip(found, want, strict=True)
            )
            if not fits:
                shape = [("any" if size is None else size) for size in want]
                raise ValueError(f"{where} {found}, the recipe wants {shape}: {cure}")
        elif name in manifest:
            found = manifest[name]
            if found not in want if isinstance(want, set) else found != want:
                raise ValueError(f"{where} is {found!r}, the recipe wants {want!r}: {cure}")
        else:
            has = ", ".join([*manifest["fields"], *manifest])
            raise ValueError(
                f"{shards.folder / 'manifest.json'} has no {name!r} (it has {has}): {cure}"
            )


def _read_index(folder: Path, digest: str) -> Index:
    path = folder / "index.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: fetch it, or write the set again")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(
            f"{path} does not belong to manifest.json (another hash): fetch or write the set again"
        )
    return json.loads(data)
