"""The sample order as a function of (seed, position); resuming replays nothing.

Samples are consumed at positions 0, 1, 2, ...; epoch e owns e*n .. e*n+n-1 and
visits the n samples in the order `permutation(n, seed, e)`. Global step s consumes positions
s*B .. s*B+B-1 (B the global batch), of which each rank takes an equal, contiguous part. Workers,
ranks and interruptions therefore cannot change the batch of a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4)
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `count` samples in `epoch`: int64 [count], read-only.

    Uses raw generator bits, which numpy keeps stable across releases (unlike
    `Generator.permutation`).
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(count)
    order = np.argsort(bits, kind="stable")
    order.setflags(write=False)
    return order


def samples_at(positions: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Sample numbers at `positions` [n] of the endless sequence, int64 [n]."""
    epochs, places = np.divmod(positions, count)
    found = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        mine = epochs == epoch
        found[mine] = permutation(count, seed, int(epoch))[places[mine]]
    return found


def rank_batch(
    step: int, *, count: int, batch: int, seed: int, rank: int = 0, world: int = 1
) -> np.ndarray:
    """Samples of `rank` out of `world` ranks at global step `step`, int64 [batch // world].

    Concatenated over ranks, these are the global batch.

    Raises:
        ValueError: `world` does not divide the global batch, or there are no samples.
    """
    if count < 1:
        raise ValueError("no samples to order: the shard set is empty")
    if batch < 1 or batch % world:
        raise ValueError(
            f"a global batch of {batch} cannot be split over {world} processes: "
            f"set batch to a multiple of {world}, or use a number of devices that divides {batch}"
        )
    share = batch // world
    first = step * batch + rank * share
    return samples_at(np.arange(first, first + share), count, seed)


class StepBatches:
    """A batch sampler over steps `start` .. `steps`-1.

    Its length is `steps`, the whole run's, also after a resume: Lightning counts the batches of
    the interrupted part towards it and would end the run early on the remainder.
    """

    def __init__(
        self,
        *,
        count: int,
        batch: int,
        steps: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
    ) -> None:
        rank_batch(0, count=count, batch=batch, seed=seed, rank=rank, world=world)
        self.count, self.batch, self.steps, self.seed = count, batch, steps, seed
        self.rank, self.world, self.start = rank, world, start

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.steps):
            yield rank_batch(
                step,
                count=self.count,
                batch=self.batch,
                seed=self.seed,
                rank=self.rank,
                world=self.world,
            ).tolist()
