"""A network that computes nothing and records what is asked of it.

Under the contract of `networks/__init__.py` it stands in for a network of any size, so that the
operations and the memory of an algorithm are counted by running the algorithm itself. Only frames,
batch, mask and cache of a call matter: latents may be 1 x 1 and prompts one token long.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self
from weakref import WeakSet

import torch
from torch import Tensor, nn

from lightning_modules.networks.wan.kv_cache import KVCache
from lightning_modules.networks.wan.shapes import first_predicted


@dataclass(frozen=True)
class Call:
    """One forward of a network.

    Args:
        frames: queried, of each clip.
        seen: pairs (query frame, key frame) that see each other, cached key frames included.
        cached: key frames that come from a cache.
        reads_prompt: whether the prompt's keys and values are computed in this call.
        batch: clips.
        backward: forwards' worth of operations of the backward pass through it: 0 without gradient,
            1 where only its input has one, 2 where its weights have one too.
        writes: whether its keys and values are appended to the cache.
        held: frames that all living caches of the network have room for, summed over clips.
        prompts: clips whose prompts those caches hold.
        last: frames and pairs of the last layer, whose queries are what is predicted; None: as in
            the others.
    """

    frames: int
    seen: int
    cached: int = 0
    reads_prompt: bool = True
    batch: int = 1
    backward: int = 0
    writes: bool = False
    held: int = 0
    prompts: int = 0
    last: tuple[int, int] | None = None


class TallyCache(KVCache):
    """A cache that knows which frames it holds, and no keys or values.

    Args:
        room: frames of its buffers; None: it grows with what is written.
    """

    def __init__(self, room: int | None = None) -> None:
        super().__init__(layers=0)
        self.room, self.batch = room, 0

    @property
    def held(self) -> int:
        """Frames it takes memory for, summed over clips."""
        return self.batch * (len(self) if self.room is None else self.room)


class Tally(nn.Module):
    """The velocity ``weight * x``, and a record of every call.

    A deep copy, such as an average, keeps records of its own under the same role.

    Args:
        role: what it stands in for, such as ``student``.
        config: of the network that it stands in for.
    """

    def __init__(self, role: str, config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.role, self.config = role, config
        self.weight = nn.Parameter(torch.ones(()))
        self.calls: list[Call] = []
        self._caches: WeakSet[TallyCache] = WeakSet()

    def new_cache(self, frames: int | None = None) -> TallyCache:
        """An empty cache; its memory counts for as long as anyone holds it."""
        cache = TallyCache(frames)
        self._caches.add(cache)
        return cache

    def with_second_time(self) -> Self:
        """Itself: a second time asks for no other calls."""
        return self

    def restart(self) -> None:
        """Forget all calls and caches."""
        self.calls = []
        self._caches = WeakSet()

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        *,
        frames: Tensor,
        visible: Tensor | None = None,
        cache: TallyCache | None = None,
        write_cache: bool = False,
        predicted: int | None = None,
        until: Tensor | None = None,
    ) -> Tensor:
        """Record the call; return ``[B, P, C, H, W]`` float32, differentiable in ``x``."""
        (batch, queries), cached = x.shape[:2], len(cache or ())
        assert t.shape == x.shape[:2] and frames.shape == (queries,), (x.shape, t.shape, frames)
        first = first_predicted(predicted, queries)
        sees = torch.ones(queries, queries) if visible is None else visible
        seen, of_last = (int(rows.sum()) + len(rows) * cached for rows in (sees, sees[first:]))
        v = self.weight * x[:, first:].float()
        reads = _reads_prompt(text, cache)
        if cache is not None:
            cache.batch = batch
        if write_cache:
            cache.append(frames.tolist(), [])
        caches = list(self._caches)
        self.calls.append(
            Call(
                frames=queries,
                seen=seen,
                cached=cached,
                reads_prompt=reads,
                batch=batch,
                backward=v.requires_grad + (v.requires_grad and self.weight.requires_grad),
                writes=write_cache,
                held=sum(each.held for each in caches),
                prompts=sum(each.batch for each in caches),
                last=(queries - first, of_last) if first else None,
            )
        )
        return v


def _reads_prompt(text: Tensor, cache: TallyCache | None) -> bool:
    """As ``Wan.cross_attention_kv``: without gradient a cache remembers the prompt it has seen."""
    if cache is None or torch.is_grad_enabled():
        return True
    if cache.recall_text(text) is not None:
        return False
    cache.remember_text(text, [])
    return True


def calls_of(action: Callable[[Tally], Any]) -> list[Call]:
    """The calls that a sampler makes of the network it is given, without gradient."""
    network = Tally("network")
    with torch.no_grad():
        action(network)
    return network.calls
