"""The KV cache of a rollout: keys and values of frames already generated, without gradient.

Denoising a block attends to concat(cache, own); only the commit (the KV-cache update after the last
denoising step) appends. Nothing is overwritten in place, so the autograd graph keeps the tensors it
read, and no gradient flows from one block into the passes that wrote an earlier one. Sampling,
which has no graph, may use `static_cache.StaticKVCache` instead.

The cache holds one chunk per commit and concatenates them at attention. Under activation
checkpointing the graph then keeps the chunks, which all blocks share, instead of one concatenated
copy per block.

Shapes: one pair per layer, keys and values [B, T, heads, head_dim] with T = frames x tokens per
frame; keys are stored after QK-norm and RoPE, at absolute positions.

Positions stay absolute however long the clip: RoPE makes attention depend on distances alone,
angles are computed in float64 from any frame index, and a window bounds the distance between its
frames. The distance to the *sinks* grows without bound, as in the published code, unless sampling
lets them follow the window (`StaticKVCache.follow`).
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_modules.networks.cameras import tiled

KeyValue = tuple[Tensor, Tensor]
WithContext = Callable[[Tensor, Tensor], KeyValue]
"""From a block's own keys and values to all that it attends to: the cached ones, then its own."""


def no_context(keys: Tensor, values: Tensor) -> KeyValue:
    """Without a cache a block attends to itself."""
    return keys, values


class KVCache:
    """Keys and values of one batch's earlier frames; `len(cache)` counts frames.

    Args:
        layers: of the network.
        posed: whether the second half of all heads is under PRoPE.
    """

    def __init__(self, layers: int, posed: bool = False):
        self._posed = posed
        self._chunks: list[tuple[KeyValue, ...]] = [()] * layers
        self._text: tuple[Tensor, list[KeyValue]] | None = None
        self.frames: tuple[int, ...] = ()

    def __len__(self) -> int:
        """How many frames are cached."""
        return len(self.frames)

    def read(self, layer: int) -> KeyValue | None:
        """Return keys and values of `layer`, each [B, T, heads, head_dim], or None while empty."""
        chunks = self._chunks[layer]
        return tuple(torch.cat(parts, 1) for parts in zip(*chunks, strict=True)) or None

    def with_context(self, layer: int, frames: int) -> WithContext:
        """A function that puts the keys and values cached now before a block's own.

        `frames` is the block's length, which a cache of fixed size needs.
        """
        held = self._chunks[layer]
        return partial(_join, held) if held else no_context

    def append(self, frames: Sequence[int], pairs: Sequence[KeyValue]) -> None:
        """Add `frames`, whose keys and values, one pair per layer, were just computed."""
        assert not torch.is_grad_enabled(), "the cache is written under torch.no_grad() only"
        assert len(pairs) == len(self._chunks), "one pair of keys and values per layer"
        for layer, (keys, values) in enumerate(pairs):
            self._chunks[layer] += ((keys.detach(), values.detach()),)
        self.frames += tuple(frames)

    def retract(self, frames: int) -> None:
        """Remove the last `frames` frames, for example noisy ones."""
        self._pick(range(len(self) - frames))

    def keep(self, frames: int, sinks: int = 0) -> None:
        """Evict all but `frames` frames: the first `sinks` in time and the latest others.

        Raises:
            ValueError: if the sinks alone would fill the window.
        """
        if not 0 <= sinks < frames:
            raise ValueError(
                f"a window of {frames} frames needs 0 <= sinks < {frames}, got {sinks}"
            )
        held = len(self)
        if held > frames:
            in_time = sorted(range(held), key=self.frames.__getitem__)
            self._pick(sorted(in_time[:sinks] + in_time[held - (frames - sinks) :]))

    def move_origin(self, change: Tensor) -> None:
        """Express cached keys and values of the heads under PRoPE in another world frame.

        bfloat16 keys grow with the distance from the origin while their differences do not, so a
        long walk moves its origin to where it is.

        Args:
            change: ``G`` ``[B, 4, 4]`` of the new world-to-camera matrices ``W' = W G^-1``.
        """
        assert not torch.is_grad_enabled(), "the cache is written under torch.no_grad() only"
        if not self._posed:
            return
        self._chunks = [
            tuple(tuple(_moved(part, change) for part in pair) for pair in chunks)
            for chunks in self._chunks
        ]

    def restart(self) -> None:
        """Empty the cache for the next rollout of the same network."""
        self._chunks = [()] * len(self._chunks)
        self.frames = ()

    @property
    def text(self) -> Tensor | None:
        """The prompt whose cross-attention keys and values are cached."""
        return self._text[0] if self._text is not None else None

    def recall_text(self, text: Tensor) -> list[KeyValue] | None:
        """The cached cross-attention keys and values if they were computed from this `text`."""
        if self._text is not None and self._text[0] is text:
            return self._text[1]
        return None

    def remember_text(self, text: Tensor, pairs: list[KeyValue]) -> None:
        """Cache the prompt's cross-attention keys and values, one pair per layer."""
        assert not torch.is_grad_enabled(), "the cache is written under torch.no_grad() only"
        self._text = (text, pairs)

    def _pick(self, slots: Sequence[int]) -> None:
        """Keep the frames at `slots` (ascending)."""
        assert not torch.is_grad_enabled(), "the cache is shortened under torch.no_grad() only"
        held, slots = len(self), list(slots)
        for layer in range(len(self._chunks)):
            keys, values = (
                part.unflatten(1, (held, -1))[:, slots].flatten(1, 2) for part in self.read(layer)
            )
            self._chunks[layer] = ((keys, values),)
        self.frames = tuple(self.frames[slot] for slot in slots)


def _moved(heads: Tensor, change: Tensor) -> Tensor:
    """Keys or values [B, T, 2 H, E] of both kinds of heads after the origin has moved."""
    rotated, posed = heads.chunk(2, 2)
    return torch.cat([rotated, tiled(posed, change[:, None])], 2)


def _join(context: tuple[KeyValue, ...], keys: Tensor, values: Tensor) -> KeyValue:
    """The cached chunks, then a block's own, in its dtype."""
    joined_keys, joined_values = (
        torch.cat([*(part.to(own.dtype) for part in earlier), own], 1)
        for *earlier, own in zip(*context, (keys, values), strict=True)
    )
    return joined_keys, joined_values
