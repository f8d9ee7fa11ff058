"""Keys and values of frames already generated: append-only, without gradient.

Denoising a block attends to concat(cache, own); only the commit pass that follows appends. Nothing
is overwritten in place, so a graph that read the cache keeps the tensors it read, and no gradient
flows from one block into the passes that wrote an earlier one.

Shapes: one pair per layer, keys and values [B, T, heads, head_dim] with T = frames x tokens per
frame; keys are stored after normalisation and rotation, at absolute positions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


class KVCache:
    """Keys and values of one batch's earlier frames; `len(cache)` counts frames."""

    def __init__(self, layers: int):
        self._pairs: list[Pair | None] = [None] * layers
        self._text: tuple[Tensor, list[Pair]] | None = None
        self.frames: tuple[int, ...] = ()

    def __len__(self) -> int:
        """How many frames are held."""
        return len(self.frames)

    def read(self, layer: int) -> Pair | None:
        """Return keys and values of `layer`, each [B, T, heads, head_dim], or None while empty."""
        return self._pairs[layer]

    def append(self, frames: Sequence[int], pairs: Sequence[Pair]) -> None:
        """Add `frames`, whose keys and values, one pair per layer, were just computed."""
        assert not torch.is_grad_enabled(), "the cache is written under torch.no_grad() only"
        assert len(pairs) == len(self._pairs), "one pair of keys and values per layer"
        for layer, (keys, values) in enumerate(pairs):
            held = self._pairs[layer]
            if held is not None:
                keys, values = torch.cat((held[0], keys), 1), torch.cat((held[1], values), 1)
            self._pairs[layer] = (keys.detach(), values.detach())
        self.frames += tuple(frames)

    def keep(self, frames: int, sinks: int = 0) -> None:
        """Forget all but `frames` frames: the first `sinks` and the most recent others.

        Raises:
            ValueError: if the sinks alone would fill the window.
        """
        assert not torch.is_grad_enabled(), "the cache is shortened under torch.no_grad() only"
        if not 0 <= sinks < frames:
            raise ValueError(
                f"a window of {frames} frames needs 0 <= sinks < {frames}, got {sinks}"
            )
        held = len(self)
        if held <= frames:
            return
        recent = held - (frames - sinks)
        for layer, pair in enumerate(self._pairs):
            assert pair is not None, "frames are counted but keys are missing"
            tokens = pair[0].shape[1] // held
            self._pairs[layer] = tuple(
                torch.cat((part[:, : sinks * tokens], part[:, recent * tokens :]), 1)
                for part in pair
            )
        self.frames = self.frames[:sinks] + self.frames[recent:]

    def recall_text(self, text: Tensor) -> list[Pair] | None:
        """Return the prompt's keys and values if `text` is the tensor they were computed from."""
        if self._text is not None and self._text[0] is text:
            return self._text[1]
        return None

    def remember_text(self, text: Tensor, pairs: list[Pair]) -> None:
        """Keep the prompt's keys and values, one pair per layer, for later calls."""
        assert not torch.is_grad_enabled(), "the cache is written under torch.no_grad() only"
        self._text = (text, pairs)
