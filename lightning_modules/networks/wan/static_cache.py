"""Keys and values of earlier frames in buffers of a fixed size: for sampling, never for training.

A block's own keys are written straight behind those that are held, so what it sees is one slice of
the buffer and nothing is copied; committing the block moves the count. A frame that is dropped
from the middle is replaced by the last one held, because the order of keys has no meaning to
attention: their positions are in them. So what is held is always a prefix, a call costs what its
prefix costs, and once a window is full every call has the same shapes at the same addresses, which
is what CUDA graphs need.

Everything here overwrites what a graph might have read: only under torch.no_grad().
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_modules.networks.wan.kv_cache import Beside, KVCache, Pair


class StaticKVCache(KVCache):
    """A `KVCache` of at most `capacity` frames, a block that is being denoised included.

    `version` counts allocations: while it stands, every buffer is where it was.

    Args:
        layers: of the network.
        capacity: in frames.
    """

    def __init__(self, layers: int, capacity: int) -> None:
        super().__init__(layers)
        self._buffers: list[Pair | None] = [None] * layers
        self.capacity = capacity
        self.version = 0
        self._frame_tokens = 0

    def restart(self) -> None:
        """Forget every frame, keep the buffers: the next rollout."""
        self.frames = ()

    def read(self, layer: int) -> Pair | None:
        """As `KVCache.read`: views of the buffers, valid until the next write."""
        buffers = self._buffers[layer]
        if buffers is None or not self.frames:
            return None
        held = len(self) * self._frame_tokens
        return buffers[0][:, :held], buffers[1][:, :held]

    def beside(self, layer: int, frames: int) -> Beside:
        """Return what writes a block's own keys and values behind the held ones, and shows all.

        Raises:
            ValueError: if the block does not fit.
        """
        assert not torch.is_grad_enabled(), "a static cache is for torch.no_grad() only"
        if len(self) + frames > self.capacity:
            raise ValueError(
                f"a cache of {self.capacity} frames holds {len(self)}: {frames} more do not fit;"
                " make it larger, or keep fewer"
            )
        return partial(self._place, layer, frames)

    def append(self, frames: Sequence[int], pairs: Sequence[Pair]) -> None:
        """Commit `frames`, the block just shown: its `pairs` lie in the buffers already."""
        assert len(pairs) == len(self._buffers), "one pair of keys and values per layer"
        self.advance(frames)

    def advance(self, frames: Sequence[int]) -> None:
        """Count `frames` as held, whose keys were written by the call before."""
        assert not torch.is_grad_enabled(), "the cache is written under torch.no_grad() only"
        self.frames += tuple(frames)

    def remember_text(self, text: Tensor, pairs: list[Pair]) -> None:
        """As `KVCache.remember_text`, at the addresses of the last prompt's where shapes agree."""
        held = self._text[1] if self._text else []
        if _shapes(held) == _shapes(pairs):
            for buffer, part in zip(_parts(held), _parts(pairs), strict=True):
                buffer.copy_(part)
            pairs = held
        else:
            self.version += 1
        super().remember_text(text, pairs)

    def _place(self, layer: int, frames: int, keys: Tensor, values: Tensor) -> Pair:
        self._allocate(layer, frames, keys, values)
        start = len(self) * self._frame_tokens
        end = start + keys.shape[1]
        shown = []
        for buffer, own in zip(self._buffers[layer], (keys, values), strict=True):
            buffer[:, start:end] = own
            shown.append(buffer[:, :end])
        return tuple(shown)

    def _allocate(self, layer: int, frames: int, keys: Tensor, values: Tensor) -> None:
        """Buffers for the first block of a rollout; those of the last one if they fit."""
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
        """Keep the frames at `slots`: the last of them move to where the first gaps are."""
        assert not torch.is_grad_enabled(), "the cache is shortened under torch.no_grad() only"
        count, places = len(slots), list(range(len(slots)))
        gaps = sorted(set(places) - set(slots))
        for gap, slot in zip(gaps, (slot for slot in slots if slot >= count), strict=True):
            places[gap] = slot
            self._move(slot, gap)
        self.frames = tuple(self.frames[place] for place in places)

    def _move(self, source: int, target: int) -> None:
        size = self._frame_tokens
        for pair in self._buffers:
            for buffer in pair or ():
                part = buffer[:, source * size : (source + 1) * size]
                buffer[:, target * size : (target + 1) * size] = part


def _parts(pairs: list[Pair]) -> list[Tensor]:
    return [part for pair in pairs for part in pair]


def _shapes(pairs: list[Pair]) -> list[tuple]:
    return [(part.shape, part.dtype, part.device) for part in _parts(pairs)]
