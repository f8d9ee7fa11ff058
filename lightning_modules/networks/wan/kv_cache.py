"""Keys and values of frames already generated: append-only, without gradient.

Denoising a block attends to concat(cache, own); only the commit pass that follows appends. Nothing
is overwritten in place, so a graph that read the cache keeps the tensors it read, and no gradient
flows from one block into the passes that wrote an earlier one. Sampling alone, which has no graph,
may use `static_cache.StaticKVCache` instead.

What is held is one chunk per commit, and chunks are joined where they are attended to. A graph that
is computed again in the backward pass then keeps chunks, which all blocks share, and no block's
past as a whole.

Shapes: one pair per layer, keys and values [B, T, heads, head_dim] with T = frames x tokens per
frame; keys are stored after normalisation and rotation, at absolute positions.

Positions stay absolute however long the clip: a rotation of query and key leaves only their
distance in the product, angles are computed in float64 from any frame number, and a window bounds
the distance between its frames. What grows without bound is the distance to the *sinks*, as in the
published code; to bound it too, their keys would have to be turned again at each step (Rolling
Forcing), which no student here was trained for.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
Beside = Callable[[Tensor, Tensor], Pair]
"""From a block's own keys and values to all that it sees."""


def alone(keys: Tensor, values: Tensor) -> Pair:
    """Without a past a block sees itself."""
    return keys, values


class KVCache:
    """Keys and values of one batch's earlier frames; `len(cache)` counts frames."""

    def __init__(self, layers: int):
        self._chunks: list[tuple[Pair, ...]] = [()] * layers
        self._text: tuple[Tensor, list[Pair]] | None = None
        self.frames: tuple[int, ...] = ()

    def __len__(self) -> int:
        """How many frames are held."""
        return len(self.frames)

    def read(self, layer: int) -> Pair | None:
        """Return keys and values of `layer`, each [B, T, heads, head_dim], or None while empty."""
        chunks = self._chunks[layer]
        return tuple(torch.cat(parts, 1) for parts in zip(*chunks, strict=True)) or None

    def beside(self, layer: int, frames: int) -> Beside:
        """Return what puts the held keys and values, as they are now, before a block's own.

        `frames` says how many the block has; a cache of fixed size must know.
        """
        held = self._chunks[layer]
        return partial(_join, held) if held else alone

    def append(self, frames: Sequence[int], pairs: Sequence[Pair]) -> None:
        """Add `frames`, whose keys and values, one pair per layer, were just computed."""
        assert not torch.is_grad_enabled(), "the cache is written under torch.no_grad() only"
        assert len(pairs) == len(self._chunks), "one pair of keys and values per layer"
        for layer, (keys, values) in enumerate(pairs):
            self._chunks[layer] += ((keys.detach(), values.detach()),)
        self.frames += tuple(frames)

    def retract(self, frames: int) -> None:
        """Forget the last `frames` frames: they were shown, but are not of the past."""
        self._pick(range(len(self) - frames))

    def keep(self, frames: int, sinks: int = 0) -> None:
        """Forget all but `frames` frames: the first `sinks` in time and the latest others.

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

    def restart(self) -> None:
        """Forget every frame: the next rollout of the same network."""
        self._chunks = [()] * len(self._chunks)
        self.frames = ()

    @property
    def text(self) -> Tensor | None:
        """The prompt whose keys and values are held."""
        return self._text[0] if self._text is not None else None

    def recall_text(self, text: Tensor) -> list[Pair] | None:
        """Return the prompt's keys and values if `text` is the tensor they were computed from."""
        if self._text is not None and self._text[0] is text:
            return self._text[1]
        return None

    def remember_text(self, text: Tensor, pairs: list[Pair]) -> None:
        """Keep the prompt's keys and values, one pair per layer, for later calls."""
        assert not torch.is_grad_enabled(), "the cache is written under torch.no_grad() only"
        self._text = (text, pairs)

    def _pick(self, slots: Sequence[int]) -> None:
        """Keep the frames at `slots`, which ascend."""
        assert not torch.is_grad_enabled(), "the cache is shortened under torch.no_grad() only"
        held, slots = len(self), list(slots)
        for layer in range(len(self._chunks)):
            keys, values = (
                part.unflatten(1, (held, -1))[:, slots].flatten(1, 2) for part in self.read(layer)
            )
            self._chunks[layer] = ((keys, values),)
        self.frames = tuple(self.frames[slot] for slot in slots)


def _join(past: tuple[Pair, ...], keys: Tensor, values: Tensor) -> Pair:
    """The chunks of the past, then a block's own, in its dtype."""
    joined_keys, joined_values = (
        torch.cat([*(part.to(own.dtype) for part in earlier), own], 1)
        for *earlier, own in zip(*past, (keys, values), strict=True)
    )
    return joined_keys, joined_values
