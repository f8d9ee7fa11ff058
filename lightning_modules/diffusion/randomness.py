"""Counter-based random draws: a function of (run seed, step, sample key, purpose) alone.

They do not depend on the rank, the data worker, the batch or earlier draws, so that a resumed run,
another world size and other methods of an ablation see the same noise. Drawn on the CPU in fp32.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Self

import torch
from torch import Tensor


def _generator(*words: object) -> torch.Generator:
    digest = blake2b("|".join(map(str, words)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big", signed=True))


class Randomness:
    """The random draws of one batch.

    Args:
        seed: the run's seed, a number or a name.
        step: of the run, so that a sample seen twice gets fresh noise.
        keys: the samples' keys, one per row of each draw.
        device: of the returned tensors.
    """

    def __init__(
        self, seed: int | str, step: int, keys: Sequence[str], device: torch.device | str = "cpu"
    ) -> None:
        self.seed, self.step, self.keys, self.device = seed, step, list(keys), device

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal ``[B, *shape]`` fp32."""
        return self._rows(torch.randn, purpose, shape)

    def uniform(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Uniform on [0, 1), ``[B, *shape]`` fp32."""
        return self._rows(torch.rand, purpose, shape)

    def integer(self, purpose: str, below: int, shape: Sequence[int] = ()) -> Tensor:
        """Uniform on 0 .. below-1, ``[B, *shape]`` int64, independent per sample."""
        return (self.uniform(purpose, shape).double() * below).long().clamp_(max=below - 1)

    def shared_integer(self, purpose: str, below: int) -> int:
        """One draw per step, equal on all ranks (which must run the same number of forwards)."""
        generator = _generator(self.seed, self.step, purpose)
        return int(torch.randint(below, (), generator=generator))

    def in_turn(self, purpose: str, below: int, count: int) -> int:
        """Not random: 0, 1, ... below-1 in turn, by how often it was asked before (``count``)."""
        return count % below

    def _rows(self, draw, purpose: str, shape: Sequence[int]) -> Tensor:
        generators = [_generator(self.seed, self.step, key, purpose) for key in self.keys]
        size, dtype = tuple(shape), torch.float32  # not the default, which libraries change
        rows = [draw(size, generator=generator, dtype=dtype) for generator in generators]
        return torch.stack(rows).to(self.device)


class DrawnAhead(Randomness):
    """The random draws of one batch, some of them made at once, in any thread; the same bits.

    Args:
        seed, step, keys: of `Randomness`.
        purposes: of the normal draws that are made at once.
        shape: of these.
    """

    def __init__(
        self,
        seed: int | str,
        step: int,
        keys: Sequence[str],
        purposes: Sequence[str],
        shape: Sequence[int],
    ) -> None:
        super().__init__(seed, step, keys)
        draw = super().normal
        self._drawn = {(purpose, *shape): draw(purpose, shape) for purpose in purposes}

    def to(self, device: torch.device) -> Self:
        """Move it to a device, in place."""
        self.device = device
        self._drawn = {which: drawn.to(device) for which, drawn in self._drawn.items()}
        return self

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal ``[B, *shape]`` fp32; not to be changed."""
        drawn = self._drawn.get((purpose, *shape))
        return super().normal(purpose, shape) if drawn is None else drawn
