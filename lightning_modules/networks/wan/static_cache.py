"""A KV cache in preallocated buffers: for sampling, never for training.

A block's own keys are written directly after the cached ones, so the attended keys are one slice of
the buffer and nothing is copied; committing the block advances the count. A frame dropped from the
middle is replaced by the last one, because attention does not depend on the order of keys: RoPE has
their positions in them. The cached frames are therefore always a prefix of the buffer, and once a
window is full every call has the same shapes at the same addresses, as CUDA graphs require.

Buffers are written in place, which autograd does not allow: only under torch.no_grad().
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_modules.networks.cameras import tiled
from lightning_modules.networks.wan.kv_cache import KeyValue, KVCache, WithContext
from lightning_modules.networks.wan.rotary import apply_rope, rope_table


class StaticKVCache(KVCache):
    """A `KVCache` of at most `capacity` frames, including the block being denoised.

    `version` counts allocations: while it is unchanged, no buffer has moved.

    Args:
        layers: of the network.
        capacity: in frames.
    """

    def __init__(self, layers: int, capacity: int, posed: bool = False) -> None:
        super().__init__(layers, posed)
        self._buffers: list[KeyValue | None] = [None] * layers
        self.capacity = capacity
        self.version = 0
        self._frame_tokens = 0
        self._sinks: list[Tensor] = []  # keys of each layer's sinks as they were committed

    def move_origin(self, change: Tensor) -> None:
        """As `KVCache.move_origin`, in place."""
        assert not torch.is_grad_enabled(), "the cache is written under torch.no_grad() only"
        for part in (part for pair in self._buffers for part in pair or () if self._posed):
            posed = part[:, : len(self) * self._frame_tokens].chunk(2, 2)[1]
            posed.copy_(tiled(posed, change[:, None]))

    def follow(self, sinks: int) -> None:
        """Move the first ``sinks`` frames in time to just before the others, as RoPE sees them.

        Their keys are turned by as many frames as are missing between. That is exact, since RoPE
        knows distances alone, and always from what was committed, so that roundings do not add up.
        Heads under PRoPE have no positions.

        Source: LongLive's relative positions in the KV cache, arXiv 2509.22622.
        """
        assert not torch.is_grad_enabled(), "the cache is written under torch.no_grad() only"
        in_time = sorted(self.frames)
        if not sinks or len(in_time) <= sinks:
            return
        assert self.frames[:sinks] == tuple(in_time[:sinks]), "sinks are never moved"
        held = [self._rotated(layer, sinks) for layer in range(len(self._buffers))]
        self._sinks = self._sinks or [keys.clone() for keys in held]
        away = in_time[sinks] - 1 - in_time[sinks - 1]
        turn = rope_table((away,), 1, 1, held[0].shape[-1], held[0].device)
        for keys, committed in zip(held, self._sinks, strict=True):
            keys.copy_(apply_rope(committed, turn))

    def restart(self) -> None:
        """Empty the cache for the next rollout; the buffers stay allocated."""
        self.frames, self._sinks = (), []

    def read(self, layer: int) -> KeyValue | None:
        """As `KVCache.read`: views of the buffers, valid until the next write."""
        buffers = self._buffers[layer]
        if buffers is None or not self.frames:
            return None
        return self.part(layer, 0, len(self))

    def with_context(self, layer: int, frames: int) -> WithContext:
        """A function that has a block's keys and values after the cached ones; returns both.

        Its attribute ``room`` is where a layer may write them itself, or None while the buffers may
        still change, in a rollout's first block.

        Raises:
            ValueError: if the block does not fit.
        """
        assert not torch.is_grad_enabled(), "a static cache is for torch.no_grad() only"
        if len(self) + frames > self.capacity:
            raise ValueError(
                f"a cache of {self.capacity} frames holds {len(self)}: {frames} more do not fit;"
                " make it larger, or keep fewer"
            )
        return _Room(self, layer, frames) if self.frames else partial(self._write, layer, frames)

    def append(self, frames: Sequence[int], pairs: Sequence[KeyValue]) -> None:
        """Commit `frames`, whose `pairs` the last call has written to the buffers already."""
        assert len(pairs) == len(self._buffers), "one pair of keys and values per layer"
        self.advance(frames)

    def advance(self, frames: Sequence[int]) -> None:
        """Commit `frames`, whose keys and values the last call has written to the buffers."""
        assert not torch.is_grad_enabled(), "the cache is written under torch.no_grad() only"
        self.frames += tuple(frames)

    def remember_text(self, text: Tensor, pairs: list[KeyValue]) -> None:
        """As `KVCache.remember_text`; reuses the last prompt's buffers where shapes agree."""
        held = self._text[1] if self._text else []
        if _shapes(held) == _shapes(pairs):
            for buffer, part in zip(_parts(held), _parts(pairs), strict=True):
                buffer.copy_(part)
            pairs = held
        else:
            self.version += 1
        super().remember_text(text, pairs)

    def part(self, layer: int, start: int, stop: int) -> KeyValue:
        """Views of the buffers, from frame ``start`` to ``stop`` in their order."""
        tokens = slice(start * self._frame_tokens, stop * self._frame_tokens)
        keys, values = self._buffers[layer]
        return keys[:, tokens], values[:, tokens]

    def _rotated(self, layer: int, frames: int) -> Tensor:
        """Keys of the first frames under RoPE: of all heads, or of the first half of them."""
        keys, _ = self.part(layer, 0, frames)
        return keys.chunk(2, 2)[0] if self._posed else keys

    def _write(self, layer: int, frames: int, keys: Tensor, values: Tensor) -> KeyValue:
        self._allocate(layer, frames, keys, values)
        return _Room(self, layer, frames)(keys, values)

    def _allocate(self, layer: int, frames: int, keys: Tensor, values: Tensor) -> None:
        """Buffers for the first block of a rollout; those of the last rollout if they fit."""
        if self.frames:
            return
        self._frame_tokens = keys.shape[1] // frames
        tokens = self.capacity * self._frame_tokens
        wanted = [(len(part), tokens, *part.shape[2:]) for part in (keys, values)]
        held = self._buffers[layer]
        if held is None or wanted != [part.shape for part in held] or held[0].dtype != keys.dtype:
            self._buffers[layer] = (keys.new_empty(wanted[0]), values.new_empty(wanted[1]))
            self.version += 1

    def _pick(self, slots: Sequence[int]) -> None:
        """Keep the frames at `slots`; the last of them move into the first gaps."""
        assert not torch.is_grad_enabled(), "the cache is shortened under torch.no_grad() only"
        count, order = len(slots), list(range(len(slots)))
        gaps = sorted(set(order) - set(slots))
        for gap, slot in zip(gaps, (slot for slot in slots if slot >= count), strict=True):
            order[gap] = slot
            self._move(slot, gap)
        self.frames = tuple(self.frames[slot] for slot in order)

    def _move(self, source: int, target: int) -> None:
        size = self._frame_tokens
        for pair in self._buffers:
            for buffer in pair or ():
                part = buffer[:, source * size : (source + 1) * size]
                buffer[:, target * size : (target + 1) * size] = part


class _Room:
    """Where the keys and values of a block's ``frames`` belong, and what they attend to."""

    def __init__(self, cache: StaticKVCache, layer: int, frames: int) -> None:
        held = len(cache)
        self.room = cache.part(layer, held, held + frames)
        self._attended = cache.part(layer, 0, held + frames)

    def __call__(self, keys: Tensor, values: Tensor) -> KeyValue:
        for room, own in zip(self.room, (keys, values), strict=True):
            if own.data_ptr() != room.data_ptr():
                room.copy_(own)
        return self._attended


def _parts(pairs: list[KeyValue]) -> list[Tensor]:
    return [part for pair in pairs for part in pair]


def _shapes(pairs: list[KeyValue]) -> list[tuple]:
    return [(part.shape, part.dtype, part.device) for part in _parts(pairs)]
