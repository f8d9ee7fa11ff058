"""Latents as CausVid, Self Forcing and Causal Forcing publish them: one LMDB per set.

Keys: ``latents_shape`` and ``prompts_shape`` (numbers separated by spaces, the first is how many),
``latents_{i}_data`` (float16 values) and ``prompts_{i}_data`` (UTF-8). A row is [F, C, H, W], or
[S, F, C, H, W] with the states of a trajectory, noise first. Values are raw bytes:
nothing is unpickled.
"""

from __future__ import annotations

import math
from pathlib import Path

import lmdb
import numpy as np

_WIDE = 1.7  # standard deviation of Wan's latents: 1 normalised, 2.3 raw, 0.4 normalised twice
_NARROW = 0.5
_SHIFTED = 0.5


class LatentRows:
    """A published set by number: `rows[i]` is (prompt, float16 [S, F, C, H, W])."""

    def __init__(self, path: Path) -> None:
        """Open `path`, a folder with data.mdb or the file itself.

        Raises:
            FileNotFoundError: nothing is there.
            ValueError: it is no LMDB, or not one of this layout.
        """
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such LMDB (a folder with data.mdb)")
        self.path = path
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
        self.count = count
        self.shape = tuple(shape) if len(shape) == 5 else (1, *shape)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[str, np.ndarray]:
        """Row `number`.

        Raises:
            ValueError: a value is missing, or has another size than its shape says.
        """
        data = self._value(f"latents_{number}_data")
        wanted = 2 * math.prod(self.shape)
        if len(data) != wanted:
            raise ValueError(
                f"{self.path}: latents_{number}_data has {len(data)} bytes, {list(self.shape)} of"
                f" float16 are {wanted}: convert or fetch it again"
            )
        return self.prompt(number), np.frombuffer(data, np.float16).reshape(self.shape)

    def prompt(self, number: int) -> str:
        """The prompt of row `number`; ValueError if it is missing."""
        return bytes(self._value(f"prompts_{number}_data")).decode(errors="replace")

    def check_normalised(self, samples: int = 16) -> None:
        """Refuse latents that were never normalised, or twice, by the clean ends of a few rows.

        Raises:
            ValueError: with what was found and the cure.
        """
        numbers = range(0, self.count, max(1, self.count // samples))
        ends = np.stack([self[number][1][-1] for number in numbers]).astype(np.float32)
        mean, std = float(ends.mean()), float(ends.std())
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
