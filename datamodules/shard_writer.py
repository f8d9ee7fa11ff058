"""Writes a shard set (described in `shards.py`): deterministic, and complete or absent."""

from __future__ import annotations

import hashlib
import json
import re
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from webdataset import TarWriter

from datamodules.members import (
    Index,
    encode_array,
    local_folder,
    locate_members,
    replace_file,
    sha256,
)

VERSION = 1
KINDS = ("clips", "pairs", "prompts", "videos")
REQUIRED_FIELDS = {
    "clips": {"latents", "text"},
    "pairs": {"text", "trajectory"},
    "prompts": {"text"},
    "videos": {"video"},
}
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,90}")  # webdataset cuts a name at its first dot
_FIELD = re.compile(r"[a-z_]+")
_OURS = re.compile(r"\d{6}\.tar|manifest\.json|index\.json|negative\.npy|.*\.part")


class ShardWriter:
    """Writes a shard set; use as a context manager.

    Files of an earlier set in `folder`, finished or not, are removed first. An exception inside
    the `with` block, or a killed process, leaves no manifest, hence no shard set.
    """

    def __init__(
        self,
        folder: Path | str,
        kind: str,
        *,
        about: dict[str, Any],
        negative: np.ndarray | None = None,
        samples_per_shard: int = 1024,
    ) -> None:
        """Start a set.

        Args:
            folder: a local folder; created when missing.
            kind: one of `KINDS`.
            about: further manifest entries (fps, normalisation, encoders, seed, ...); JSON values.
            negative: [L, D] text embedding of the negative prompt.
            samples_per_shard: samples in one tar.

        Raises:
            ValueError: an unknown kind, or `about` has an entry that the writer makes itself.
        """
        self.folder = local_folder(folder)
        if kind not in KINDS:
            raise ValueError(f"no shard kind {kind!r}; there are {', '.join(KINDS)}")
        own = {"version", "kind", "count", "shards", "fields", "index_sha256"} & set(about)
        if own:
            raise ValueError(
                f"manifest entries {sorted(own)} are made by the writer; leave them out of `about`"
            )
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard is {samples_per_shard}; at least 1")
        self.kind, self.about, self.negative = kind, about, negative
        self.samples_per_shard = samples_per_shard
        self.count = 0
        self.fields: dict[str, dict[str, Any]] = {}
        self._keys: set[str] = set()
        self._shards: list[dict[str, Any]] = []
        self._index: Index = {}
        self._tar: TarWriter | None = None
        self._file: BufferedWriter | None = None

    def __enter__(self) -> ShardWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "manifest.json").unlink(
            missing_ok=True
        )  # first: from here on the set is incomplete
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name):
                path.unlink()
        return self

    def write(self, key: str, arrays: dict[str, np.ndarray], info: dict[str, Any]) -> None:
        """Append a sample.

        Args:
            key: unique in the set; letters, digits, `_` and `-`.
            arrays: field -> array; the first sample fixes names, shapes and dtypes for all.
            info: JSON values; `caption` is required.

        Raises:
            ValueError: a bad or repeated key, no caption, fields unlike the first sample's.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"sample key {key!r}: use at most 91 letters, digits, '_' and '-'")
        if key in self._keys:
            raise ValueError(f"sample key {key!r} is written twice into {self.folder}")
        if not isinstance(info.get("caption"), str):
            raise ValueError(f"sample {key!r}: info needs a 'caption' string")
        self._check_fields(key, arrays)
        if self._tar is None:
            self._open_shard()
        assert self._tar is not None
        members = {f"{name}.npy": encode_array(array) for name, array in arrays.items()}
        members["json"] = json.dumps(info, sort_keys=True, allow_nan=False).encode()
        self._tar.write({"__key__": key, **members})
        self._keys.add(key)
        self._shards[-1]["count"] += 1
        self.count += 1
        if self._shards[-1]["count"] == self.samples_per_shard:
            self._close_shard()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._tar is not None:
            self._close_shard()
        if error is not None:
            return
        if self.count == 0:
            raise ValueError(
                f"nothing was written into {self.folder}; a shard set needs at least one sample"
            )
        if self.negative is not None:
            replace_file(self.folder / "negative.npy", encode_array(self.negative))
        index = json.dumps(self._index, separators=(",", ":")).encode()
        replace_file(self.folder / "index.json", index)
        manifest = {
            "version": VERSION,
            "kind": self.kind,
            "count": self.count,
            "fields": self.fields,
            "shards": self._shards,
            "index_sha256": hashlib.sha256(index).hexdigest(),
            **self.about,
        }
        replace_file(
            self.folder / "manifest.json", json.dumps(manifest, indent=1, allow_nan=False).encode()
        )

    def _check_fields(self, key: str, arrays: dict[str, np.ndarray]) -> None:
        found = {
            name: {"shape": list(a.shape), "dtype": str(a.dtype)}
            for name, a in sorted(arrays.items())
        }
        if self.count == 0:
            missing = REQUIRED_FIELDS[self.kind] - set(found)
            if missing:
                raise ValueError(
                    f"sample {key!r}: shards of kind {self.kind} need {sorted(missing)} as well"
                )
            bad = [
                name for name in found if not _FIELD.fullmatch(name) or arrays[name].dtype.hasobject
            ]
            if bad:
                raise ValueError(
                    f"sample {key!r}: fields {bad} need lower-case names and plain numbers"
                )
            self.fields = found
        elif found != self.fields:
            raise ValueError(
                f"sample {key!r} has fields {found}; the first sample of the set has {self.fields}"
            )

    def _open_shard(self) -> None:
        name = f"{len(self._shards):06d}.tar"
        self._file = open(self.folder / name, "wb")  # noqa: SIM115 - closed in _close_shard
        self._tar = TarWriter(self._file, encoder=False, mtime=0, user="", group="")
        self._shards.append({"file": name, "count": 0})

    def _close_shard(self) -> None:
        assert self._tar is not None and self._file is not None
        self._tar.close()
        self._file.close()
        self._tar = self._file = None
        shard = self._shards[-1]
        path = self.folder / shard["file"]
        self._index[shard["file"]] = locate_members(path)
        shard.update(bytes=path.stat().st_size, sha256=sha256(path))
