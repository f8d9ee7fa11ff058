"""One shard of an unfinished set, and the metadata file ("note") that marks it as finished.

`000012.tar` is written under a temporary name and renamed when complete; then its note
`000012.json` is written. The note holds the shard's part of manifest and index, so that processes
can make shards in any order and resume from the notes alone after an interruption. When the set is
complete the notes are removed.
"""

from __future__ import annotations

import json
import os
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from webdataset import TarWriter

from datamodules.atomic import naming, write_bytes
from datamodules.shards.npy_tar import (
    PADDED,
    encode_array,
    locate_members,
    sha256,
    without_padding,
)
from datamodules.values import VARIED, fault

Fields = dict[str, dict[str, Any]]  # name -> shape and dtype
Note = dict[str, Any]

REQUIRED_FIELDS = {
    "clips": {"latents", "text"},
    "pairs": {"text", "trajectory"},
    "prompts": {"text"},
    "videos": {"video"},
}
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,90}")  # webdataset splits a name at its first dot
_FIELD = re.compile(r"[a-z_]+")


class ShardFile:
    """Writes one shard, which is part of the set once `finish` has returned."""

    def __init__(
        self, folder: Path, number: int, kind: str, identity: str, fields: Fields | None = None
    ) -> None:
        """Start the tar.

        Args:
            folder: of the set.
            number: of the tar.
            kind: of the set.
            identity: metadata shared by all shards of a set (`identity_of`).
            fields: of the set's earlier samples; None if this shard has the first one.
        """
        self.folder, self.number, self.kind, self.identity = folder, number, kind, identity
        self.fields: Fields = fields or {}
        self.keys: set[str] = set()
        owner = f"{socket.gethostname()}-{os.getpid()}"  # locks may not reach other machines
        self._part = tar_path(folder, number).with_suffix(f".tar.{owner}.part")
        self._file = open(self._part, "wb")  # noqa: SIM115 - closed in finish or abandon
        self._tar = TarWriter(self._file, encoder=False, mtime=0, user="", group="")

    def write(self, key: str, arrays: dict[str, np.ndarray], info: dict[str, Any]) -> None:
        """Append a sample; see `ShardWriter.write`."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"sample key {key!r}: use at most 91 letters, digits, '_' and '-'")
        if key in self.keys:
            raise ValueError(f"sample key {key!r} is written twice into {self.folder}")
        if not isinstance(info.get("caption"), str):
            raise ValueError(f"sample {key!r}: info needs a 'caption' string")
        self._check_fields(key, arrays)
        for name, array in arrays.items():
            if why := fault(array, name in VARIED):
                raise ValueError(f"sample {key!r} for {self.folder}: {name} is {why}")
        stored = {
            name: without_padding(array) if name in PADDED else array
            for name, array in arrays.items()
        }
        members = {f"{name}.npy": encode_array(array) for name, array in stored.items()}
        members["json"] = json.dumps(info, sort_keys=True, allow_nan=False).encode()
        with naming(self._part):
            self._tar.write({"__key__": key, **members})
        self.keys.add(key)

    def finish(self, remarks: list[Any] | None = None) -> Note:
        """Rename the tar and write its note; returns the note.

        Args:
            remarks: JSON values to store in the note, such as rejections.
        """
        path = tar_path(self.folder, self.number)
        with naming(path):
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        shard = {"file": path.name, "count": len(self.keys)}
        members: dict[str, Any] = {}
        if self.keys:
            members = locate_members(self._part)
            shard |= {"bytes": self._part.stat().st_size, "sha256": sha256(self._part)}
            os.replace(self._part, path)
        else:  # everything was rejected: a note without a tar
            self._part.unlink()
        note = {
            "identity": self.identity,
            "fields": self.fields,
            "shard": shard,
            "members": members,
            "remarks": remarks or [],
        }
        write_note(self.folder, self.number, note)
        return note

    def abandon(self) -> None:
        """Remove the unfinished tar."""
        for each in (self._tar, self._file):
            with suppress(OSError):  # what is left in buffers does not fit on a full disk either
                each.close()
        self._part.unlink(missing_ok=True)

    def _check_fields(self, key: str, arrays: dict[str, np.ndarray]) -> None:
        found = {
            name: {"shape": list(a.shape), "dtype": str(a.dtype)}
            for name, a in sorted(arrays.items())
        }
        if not self.fields:
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


def tar_path(folder: Path, number: int) -> Path:
    """Path of shard `number`."""
    return folder / f"{number:06d}.tar"


def note_path(folder: Path, number: int) -> Path:
    """Path of the note of shard `number`."""
    return folder / f"{number:06d}.json"


def write_note(folder: Path, number: int, note: Note) -> None:
    write_bytes(note_path(folder, number), json.dumps(note, separators=(",", ":")).encode())


def finished(folder: Path, number: int, identity: str) -> Note | None:
    """The note of shard `number` if that shard is finished and intact, else None.

    Raises:
        ValueError: the tar belongs to a set with other manifest entries.
    """
    path = note_path(folder, number)
    try:
        note = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if note["identity"] != identity:
        raise ValueError(
            f"{path}: this shard was begun with other settings, encoders or data than the run has"
            f" now; put them back, or remove {folder} to start again"
        )
    tar = tar_path(folder, number)
    whole = not note["shard"]["count"] or (
        tar.is_file() and tar.stat().st_size == note["shard"]["bytes"]
    )
    return note if whole else None
