"""An unfinished shard set, made by one or several processes, and its completion."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.atomic import write_bytes
from datamodules.shards.npy_tar import (
    Index,
    decode_fields,
    decode_info,
    encode_array,
    local_folder,
)
from datamodules.shards.shard_file import (
    REQUIRED_FIELDS,
    Fields,
    Note,
    ShardFile,
    finished,
    tar_path,
    write_note,
)

VERSION = 1
KINDS = tuple(REQUIRED_FIELDS)
OWN = ("version", "kind", "count", "shards", "fields", "index_sha256")
_SCAFFOLD = re.compile(r"\d{6}\.(json|claim|tar\..*\.part)")
_OURS = re.compile(
    r"\d{6}\.(tar|json|claim)|manifest\.json|index\.json|negative\.npy|.*\.part|\..*\.tmp"
)


class ShardSet:
    """An unfinished shard set: its shards, which of them are finished, and its completion.

    Args:
        folder: a local folder; created when missing.
        kind: one of `KINDS`.
        about: further manifest entries (fps, normalisation, encoders, seed, ...); JSON values.

    Raises:
        ValueError: an unknown kind, or `about` has an entry that the writer makes itself.
    """

    def __init__(self, folder: Path | str, kind: str, about: Mapping[str, Any]) -> None:
        self.folder = local_folder(folder)
        if kind not in KINDS:
            raise ValueError(f"no shard kind {kind!r}; there are {', '.join(KINDS)}")
        if own := set(OWN) & set(about):
            raise ValueError(
                f"manifest entries {sorted(own)} are made by the writer; leave them out of `about`"
            )
        self.kind, self.about = kind, dict(about)
        canonical = json.dumps([kind, without_places(self.about)], sort_keys=True, allow_nan=False)
        self.identity = hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def complete(self) -> bool:
        """Whether the set is complete; ValueError if the folder holds another one."""
        return self._manifest() is not None

    def start(self, number: int, fields: Fields | None = None) -> ShardFile:
        """A writer for shard `number`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return ShardFile(self.folder, number, self.kind, self.identity, fields)

    def finished(self, number: int) -> Note | None:
        """The note of shard `number` if finished; ValueError if it belongs to another set."""
        return finished(self.folder, number, self.identity)

    def shortened(self, number: int, note: Note, count: int) -> Note:
        """The new note of shard `number` (so far `note`), truncated to its first samples.

        The shard is as if the others had never been written, but keeps all rejections. An
        interruption leaves the old shard, the new one, or an unfinished one to be made again.
        """
        path, fields = tar_path(self.folder, number), note["fields"]
        shorter = self.start(number, fields)
        try:
            data = memoryview(path.read_bytes())
            for key, members in list(note["members"].items())[:count]:
                where = f"sample {key!r} in {path}"
                info = decode_info(_at(data, *members["json"]), where)
                shorter.write(key, decode_fields(members, fields, partial(_at, data), where), info)
            return shorter.finish(note["remarks"])
        except BaseException:
            shorter.abandon()
            raise

    def seal(
        self,
        notes: Sequence[Note],
        negative: np.ndarray | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Complete the set: write index and manifest, remove notes and claims.

        Args:
            notes: of all shards, in order; shards without samples are left out.
            negative: [L, D] text embedding of the negative prompt.
            about: further manifest entries; JSON values.

        Raises:
            ValueError: no samples at all, different fields or a duplicate key between shards.
        """
        kept = [note for note in notes if note["shard"]["count"]]
        if not kept:
            raise ValueError(
                f"nothing was written into {self.folder}; a shard set needs at least one sample"
            )
        self._check_agreement(kept)
        if negative is not None:
            write_bytes(self.folder / "negative.npy", encode_array(negative))
        places = {note["shard"]["file"]: note["members"] for note in kept}
        index = json.dumps(places, separators=(",", ":")).encode()
        write_bytes(self.folder / "index.json", index)
        manifest = {
            "version": VERSION,
            "kind": self.kind,
            "count": sum(note["shard"]["count"] for note in kept),
            "fields": kept[0]["fields"],
            "shards": [note["shard"] for note in kept],
            "index_sha256": hashlib.sha256(index).hexdigest(),
            **self.about,
            **(about or {}),
        }
        write_bytes(
            self.folder / "manifest.json", json.dumps(manifest, indent=1, allow_nan=False).encode()
        )
        self.tidy()

    def tidy(self) -> None:
        """Remove notes and claims, which a complete set does not need."""
        for path in self.folder.iterdir():
            if _SCAFFOLD.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def unseal(self) -> None:
        """Turn a complete set back into an unfinished one: restore its notes."""
        manifest = self._manifest()
        assert manifest is not None
        index: Index = json.loads((self.folder / "index.json").read_bytes())
        for number, shard in enumerate(manifest["shards"]):
            members = index[shard["file"]]
            note = {"identity": self.identity, "fields": manifest["fields"], "shard": shard}
            write_note(self.folder, number, {**note, "members": members, "remarks": []})
        (self.folder / "manifest.json").unlink()

    def clear(self, tars: int = 0) -> None:
        """Remove files of an earlier writer, except the first `tars` shards and their notes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = {tar_path(self.folder, number).stem for number in range(tars)}
        (self.folder / "manifest.json").unlink(missing_ok=True)  # first: from here on incomplete
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name) and path.name.split(".")[0] not in kept:
                path.unlink()

    def _manifest(self) -> dict[str, Any] | None:
        path = self.folder / "manifest.json"
        if not path.is_file():
            return None
        manifest = json.loads(path.read_bytes())
        expected = without_places(json.loads(json.dumps({"kind": self.kind, **self.about})))
        found = without_places(manifest)
        if other := [name for name in expected if found.get(name) != expected[name]]:
            raise ValueError(
                f"{path}: a set with another {', '.join(other)} lies there; remove {self.folder}"
            )
        return manifest

    def _check_agreement(self, notes: Sequence[Note]) -> None:
        first, seen = notes[0], set()
        for note in notes:
            file = note["shard"]["file"]
            if note["fields"] != first["fields"]:
                raise ValueError(
                    f"{self.folder / file} has fields {note['fields']}; "
                    f"{first['shard']['file']} has {first['fields']}"
                )
            if twice := seen & set(note["members"]):
                raise ValueError(f"sample key {min(twice)!r} is written twice into {self.folder}")
            seen |= set(note["members"])


def without_places(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Manifest entries without the folders where encoders lay: weights that moved are the same."""
    return {
        key: {k: v for k, v in value.items() if k != "folder"} if isinstance(value, dict) else value
        for key, value in entries.items()
    }


def _at(data: memoryview, offset: int, size: int) -> bytes:
    return bytes(data[offset : offset + size])
