"""Writes a shard set (described in `reader.py`): deterministic, and complete or absent.

One process writes a set sequentially with `ShardWriter`. Several processes write one together with
`ShardSet`: each makes whole shards, by number, in any order.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from datamodules.shards.shard_file import Note, ShardFile
from datamodules.shards.shard_set import ShardSet


class ShardWriter:
    """Writes a shard set from its first sample to its last; use as a context manager.

    An exception inside the `with` block, or a killed process, leaves no manifest, hence no shard
    set, but keeps every full shard. With `resume` the next writer continues from those::

        with ShardWriter(folder, kind, about=about, resume=True) as writer:
            for key in keys:
                if key not in writer.written:
                    writer.write(key, *make(key))

    The same samples in the same order give the same bytes, however often the writer was stopped.
    Without `resume`, files of an earlier set in `folder`, finished or not, are removed first.
    """

    def __init__(
        self,
        folder: Path | str,
        kind: str,
        *,
        about: dict[str, Any],
        negative: np.ndarray | None = None,
        samples_per_shard: int = 1024,
        resume: bool = False,
    ) -> None:
        """Start a set.

        Args:
            folder: a local folder; created when missing.
            kind: one of `KINDS`.
            about: further manifest entries (fps, normalisation, encoders, seed, ...); JSON values.
            negative: [L, D] text embedding of the negative prompt.
            samples_per_shard: samples per shard: at most so many are lost when interrupted.
            resume: keep the shards that an interrupted writer finished.

        Raises:
            ValueError: as `ShardSet`; or an invalid number of samples.
        """
        self._set = ShardSet(folder, kind, about)
        self.folder = self._set.folder
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard is {samples_per_shard}; at least 1")
        self.negative, self.samples_per_shard, self.resume = negative, samples_per_shard, resume
        self._notes: list[Note] = []
        self._shard: ShardFile | None = None
        self.written: set[str] = set()

    @property
    def count(self) -> int:
        """Samples in the set so far."""
        return len(self.written)

    def __enter__(self) -> ShardWriter:
        """Start or resume the set.

        Raises:
            ValueError: with `resume`, the finished shards were written with another `about`.
        """
        if self.resume:
            if self._set.complete:
                self._set.unseal()
            while note := self._set.finished(len(self._notes)):
                self._notes.append(note)
                self.written |= set(note["members"])
        self._set.clear(tars=len(self._notes))
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
        if key in self.written:
            raise ValueError(f"sample key {key!r} is written twice into {self.folder}")
        if self._shard is None:
            fields = self._notes[0]["fields"] if self._notes else None
            self._shard = self._set.start(len(self._notes), fields)
        self._shard.write(key, arrays, info)
        self.written.add(key)
        if len(self._shard.keys) == self.samples_per_shard:
            self._close_shard()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            if self._shard is not None:
                self._shard.abandon()
            return
        if self._shard is not None:
            self._close_shard()
        self._set.seal(self._notes, self.negative)

    def _close_shard(self) -> None:
        assert self._shard is not None
        self._notes.append(self._shard.finish())
        self._shard = None
