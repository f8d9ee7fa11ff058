"""Latents as CausVid, Self Forcing and Causal Forcing publish them: one LMDB per set.

Keys: ``latents_shape`` and ``prompts_shape`` (numbers separated by spaces, the first is how many),
``latents_{i}_data`` (float16 values) and ``prompts_{i}_data`` (UTF-8). A row is [F, C, H, W], or
[S, F, C, H, W] with the states of a trajectory, noise first. Values are raw bytes:
nothing is unpickled.
"""

from __future__ import annotations

import math
import shlex
import string
import struct
from pathlib import Path

import lmdb
import numpy as np

from datamodules.curation.refusal import Refused

_WIDE = 1.7  # standard deviation of Wan's latents: 1 normalised, 2.3 raw, 0.4 normalised twice
_NARROW = 0.5
_SHIFTED = 0.5
# A meta page of LMDB's file format (mdb.c: MDB_meta behind a page header of 16 bytes): magic
# number, page size, last used page, transaction. There are two; the later transaction counts.
_META = struct.Struct("<16xI20xI92xQQ")
_MAGIC = 0xBEEFC0DE


class LatentRows:
    """A published set by number: `rows[i]` is (prompt, float16 [S, F, C, H, W])."""

    def __init__(self, path: Path) -> None:
        """Open `path`, a folder with data.mdb or the file itself.

        Raises:
            FileNotFoundError: nothing is there.
            ValueError: it is no LMDB, one that is cut off or in parts, or not of this layout.
        """
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such LMDB (a folder with data.mdb)")
        self.path = path
        _require_whole(path / "data.mdb" if path.is_dir() else path)
        try:
            environment = lmdb.open(
                str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False
            )
        except lmdb.Error as error:
            raise ValueError(
                f"{path}: does not open as an LMDB ({error}): fetch it again"
            ) from error
        self._values = environment.begin(buffers=True)
        count, *shape = self._shape("latents_shape")
        if len(shape) not in (4, 5) or count < 1:
            raise ValueError(
                f"{path}: latents_shape is {[count, *shape]}; wanted are N, F, C, H, W or"
                " N, S, F, C, H, W"
            )
        if self._values.get(b"prompts_shape") and self._shape("prompts_shape")[:1] != [count]:
            raise ValueError(
                f"{path}: {count} latents, but prompts_shape is {self._shape('prompts_shape')};"
                " convert or fetch it again"
            )
        self.count = count
        self.shape = tuple(shape) if len(shape) == 5 else (1, *shape)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[str, np.ndarray]:
        """Row `number`.

        Raises:
            ValueError: a value is missing, or has another size than its shape says.
        """
        return self.prompt(number), self.latents(number)

    def latents(self, number: int) -> np.ndarray:
        """Float16 [S, F, C, H, W] of row `number`; ValueError as above."""
        data = self._value(f"latents_{number}_data")
        wanted = 2 * math.prod(self.shape)
        if len(data) != wanted:
            raise ValueError(
                f"{self.path}: latents_{number}_data has {len(data)} bytes, {list(self.shape)} of"
                f" float16 are {wanted}: convert or fetch it again"
            )
        return np.frombuffer(data, np.float16).reshape(self.shape)

    def prompt(self, number: int) -> str:
        """The prompt of row `number`, U+FFFD for what is not UTF-8; ValueError if it is missing."""
        return bytes(self._value(f"prompts_{number}_data")).decode(errors="replace")

    def check(self, number: int) -> None:
        """Raise `Refused` for a row that nothing can be trained on."""
        latents, prompt = self.latents(number), self.prompt(number)
        if bad := latents.size - np.count_nonzero(np.isfinite(latents)):
            raise Refused("not finite", f"{bad} of {latents.size} latents are NaN or infinite")
        if any((state == state.flat[0]).all() for state in latents):
            raise Refused("constant", "all latents of a state are equal")
        if "\ufffd" in prompt:
            raise Refused("prompt", f"{prompt[:40]!r} is not UTF-8")

    def check_normalised(self, samples: int = 16) -> None:
        """Refuse latents that were never normalised, or twice, by the clean ends of a few rows.

        Raises:
            ValueError: with what was found and the cure.
        """
        numbers = range(0, self.count, max(1, self.count // samples))
        ends = np.stack([self.latents(number)[-1] for number in numbers]).astype(np.float32)
        finite = ends[np.isfinite(ends)]  # other rows are refused one by one
        mean, std = (float(finite.mean()), float(finite.std())) if finite.size else (math.nan,) * 2
        if not (abs(mean) < _SHIFTED and _NARROW < std < _WIDE):
            raise ValueError(
                f"{self.path}: latents have mean {mean:.2f} and deviation {std:.2f}, normalised"
                " ones about 0 and 1; store (z - latents_mean) / latents_std of the VAE's"
                " config.json (original Wan does, diffusers' VAE does not)"
            )

    def _shape(self, key: str) -> list[int]:
        text = bytes(self._value(key)).decode(errors="replace")
        try:
            return [int(word) for word in text.split()]
        except ValueError:
            raise ValueError(f"{self.path}: {key} is {text[:40]!r}, no row of numbers") from None

    def _value(self, key: str) -> memoryview:
        value = self._values.get(key.encode())
        if value is None:
            raise ValueError(
                f"{self.path}: no {key}; not an LMDB of latents as CausVid, Self Forcing or Causal"
                " Forcing write them, or one that is cut off"
            )
        return value


def _require_whole(file: Path) -> None:
    """Compare a file's size with the pages it claims: reading beyond its end is a SIGBUS."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file{_parts(file.parent)}")
    size = file.stat().st_size
    with open(file, "rb") as opened:
        first = opened.read(_META.size)
        if len(first) < _META.size or _META.unpack(first)[0] != _MAGIC:
            raise ValueError(f"{file}: does not open as an LMDB ({size} bytes): fetch it again")
        page = _META.unpack(first)[1]
        opened.seek(page)
        second = opened.read(_META.size)
    metas = [_META.unpack(each) for each in (first, second) if len(each) == _META.size]
    last = max(metas, key=lambda meta: meta[3])[2]
    if size < (last + 1) * page:
        raise ValueError(
            f"{file}: cut off: {size} bytes, its pages are {(last + 1) * page}; fetch it again"
        )


def _parts(folder: Path) -> str:
    """What lies in a folder instead of data.mdb: the sets or pieces that it was published in."""
    if sets := sorted(str(path.parent) for path in folder.glob("*/data.mdb")):
        return (
            f"; the set is in {len(sets)} parts, {sets[0]} and so on: give one of them, or merge"
            " them into one LMDB (keys latents_0_data, latents_1_data, ...) first"
        )
    whole = f"{folder / 'data.mdb'}"
    if pieces := sorted(map(str, folder.glob("data.mdb?*"))):
        start = pieces[0].rstrip(string.ascii_lowercase + string.digits)
        return f"; join its pieces first: cat {shlex.quote(start)}* > {shlex.quote(whole)}"
    return "; give the folder with data.mdb, or the file itself"
