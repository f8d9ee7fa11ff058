"""Context for sampling only: fewer calls, a static KV cache, and a window for clips of any length.

The loop is :func:`rollout.stream`, as everywhere; only the KV-cache update differs.

    commit   separate   a call on the clean block updates the cache, as in training
             fused      the update shares the first call of the next block: the same attention mask,
                        so the same result (up to rounding), with one call fewer
             none       the keys of the block's last denoising call are kept: no extra call, but
                        context as noisy as that call's input, which students of SF-DMD alone may be
                        trained on; with ``noisy_from``, blocks from that frame on
    window   frames a block attends to, its own included; the first ``sinks`` are never evicted

Positions are absolute, so that the distance to sinks grows; where they follow the window, it is no
longer than the window, and until that is full nothing differs.

A commit attends to what its block attended to when it was denoised. In a full window the next block
no longer does, so there a fused commit needs a call of its own.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from lightning_modules.diffusion.forcing import VelocityNetwork
from lightning_modules.diffusion.rollout import Past
from lightning_modules.diffusion.visibility import block_causal_mask

COMMITS = ("separate", "fused", "none")


class FastPast(Past):
    """A :class:`Past` without gradient; it yields the same samples.

    Args:
        net, text, negative, guidance: of :class:`Past`.
        frames: of the clip; None if it has no end, which needs a window.
        window: frames a block attends to, its own included; 0: all.
        sinks: first frames of the clip that stay in the window; plus the largest block they must
            be fewer than the window.
        sinks_follow: whether they stand just before the other frames of a full window.
        commit: one of ``COMMITS``.
        noisy_from: first frame of the first block whose commit is ``none``, whatever ``commit``
            says of the blocks before; None: there is no such block.
    """

    def __init__(
        self,
        net: VelocityNetwork,
        text: Tensor,
        negative: Tensor | None = None,
        guidance: float = 1.0,
        *,
        frames: int | None,
        window: int = 0,
        sinks: int = 0,
        sinks_follow: bool = False,
        commit: str = "separate",
        noisy_from: int | None = None,
    ) -> None:
        assert commit in COMMITS, commit
        assert window or frames, "a clip without end needs a window"
        self.window = min(each for each in (window, frames) if each)
        self.sinks, self.sinks_follow, self.commit_mode = sinks, sinks_follow, commit
        self.noisy_from = math.inf if noisy_from is None else noisy_from
        if commit == "none":
            self.noisy_from = 0
        self._pending: tuple[Tensor, Tensor, slice] | None = None  # a commit not yet made
        self._noisy: slice | None = None  # the block whose noisy keys are in the cache
        super().__init__(net, text, negative, guidance)

    def restart(self, text: Tensor) -> Self:
        """Empty context for the next prompts ``[B, L, D]``, in the same buffers."""
        self._pending = self._noisy = None
        self.cache.restart()
        self.ask(text)
        return self

    def say(self, text: Tensor) -> None:
        """Other prompts ``[B, L, D]`` from the next block on; the context stays as it is."""
        self._write_pending()
        self.ask(text)

    def show_again(self, text: Tensor, x0: Tensor, blocks: Sequence[slice]) -> None:
        """Other prompts, and a context made anew of these clean frames, in one block-causal call.

        LongLive (arXiv 2509.22622) calls it KV recache.

        Args:
            text: prompts ``[B, L, D]``.
            x0: ``[B, N, C, H, W]``, the frames of all ``blocks``, fewer than the window has.
            blocks: in time, not necessarily adjacent.
        """
        self.restart(text)
        mask = block_causal_mask([block.stop - block.start for block in blocks])
        t = x0.new_zeros(x0.shape[:2])
        self.forward(x0, t, *blocks, visible=mask, write_cache=True, predicted=0)
        if self.sinks_follow:
            self.cache.follow(self.sinks)

    @property
    def held(self) -> set[int]:
        """The frames that the next block can see; more than it will, if the window is full."""
        pending = () if self._pending is None else range(*self._pending[2].indices(2**62))
        return {*self.cache.frames, *pending}

    def new_cache(self) -> Any:
        """A static KV cache of the window's size."""
        return self.net.new_cache(self.window)

    def predict(self, x: Tensor, t: Tensor, block: slice) -> Tensor:
        """All branches' velocities; a pending commit shares the call if the window has room."""
        if self._pending is not None and self._has_room(self._pending[0], x):
            return self._predict_and_commit(x, t, block)
        self._write_pending()
        if block.start < self.noisy_from:
            self._make_room(x)
            return self.forward(x, t, block)
        if self._noisy == block:
            self._retract(x)
        self._make_room(x)
        self._noisy = block
        return self.forward(x, t, block, write_cache=True)

    def write(self, context: Tensor, t: Tensor, block: slice) -> None:
        """Commit ``context`` now, with the next call, or by keeping its last noisy keys."""
        if self._noisy == block:
            self._noisy = None
            return
        self._write_pending()
        self._pending = (context, t, block)
        if self.commit_mode != "fused":
            self._write_pending()

    def _predict_and_commit(self, x: Tensor, t: Tensor, block: slice) -> Tensor:
        """One call on [clean block | noisy next block]; only the clean keys stay in the cache."""
        context, context_t, earlier = self._pending
        self._pending = None
        v = self.forward(
            torch.cat([context, x], dim=1),
            torch.cat([context_t, t], dim=1),
            earlier,
            block,
            visible=block_causal_mask((context.shape[1], x.shape[1])),
            write_cache=True,
            predicted=x.shape[1],
        )
        self._retract(x)
        return v

    def _write_pending(self) -> None:
        if self._pending is not None:
            (context, t, block), self._pending = self._pending, None
            self._make_room(context)
            self.forward(context, t, block, write_cache=True, predicted=0)

    def _has_room(self, *blocks: Tensor) -> bool:
        new = sum(block.shape[1] for block in blocks)
        return len(self.cache) + new <= self.window

    def _make_room(self, x: Tensor) -> None:
        """Evict frames until the block ``x`` fits into the window."""
        if not self._has_room(x):
            self.cache.keep(self.window - x.shape[1], self.sinks)
            if self.sinks_follow:
                self.cache.follow(self.sinks)

    def _retract(self, x: Tensor) -> None:
        self.cache.retract(x.shape[1])
