"""A past for sampling alone: fewer calls, fixed buffers, and a window for clips of any length.

The loop is :func:`rollout.stream`, as everywhere; what is different is how the past is kept.

    commit   separate   a block is shown clean in a call of its own, as in training
             fused      it rides along with the first call of the next block: the same frames see
                        the same frames, so the same numbers (up to rounding), in one call fewer
             none       the keys of the block's last denoising call stay: no call at all, but the
                        past is as noisy as that call's input, which no student here was trained on
    window   frames a block sees, its own included; the first ``sinks`` frames are never dropped

A commit sees what its block saw when it was denoised. In a full window the next block no longer
sees all of that, so there a fused commit is made in a call of its own.
"""

from typing import Any, Self

import torch
from torch import Tensor

from lightning_modules.diffusion.forcing import Network
from lightning_modules.diffusion.rollout import Past
from lightning_modules.diffusion.visibility import block_causal

COMMITS = ("separate", "fused", "none")


class FastPast(Past):
    """A :class:`Past` without gradient; what it samples is what :class:`Past` samples.

    Args:
        net, text, negative, guidance: of :class:`Past`.
        frames: of the clip.
        window: frames a block sees, its own included; 0: all.
        sinks: first frames of the clip that stay in the window; with the largest block fewer than
            the window.
        commit: one of ``COMMITS``.
    """

    def __init__(
        self,
        net: Network,
        text: Tensor,
        negative: Tensor | None = None,
        guidance: float = 1.0,
        *,
        frames: int,
        window: int = 0,
        sinks: int = 0,
        commit: str = "separate",
    ) -> None:
        assert commit in COMMITS, commit
        self.window = min(window, frames) if window else frames
        self.sinks, self.how = sinks, commit
        self._waiting: tuple[Tensor, Tensor, slice] | None = None
        self._shown: slice | None = None
        super().__init__(net, text, negative, guidance)

    def restart(self, text: Tensor) -> Self:
        """The empty past of the next prompts ``[B, L, D]``, in the same buffers."""
        texts = [text] if self.guidance == 1 else [text, self.negative.expand_as(text)]
        caches = [cache for _, cache in self.branches]
        for cache in caches:
            cache.restart()
        self.branches = list(zip(texts, caches, strict=True))
        self._waiting = self._shown = None
        return self

    def new_cache(self) -> Any:
        """As large as the window."""
        return self.net.new_cache(self.window)

    def predict(self, x: Tensor, t: Tensor, block: slice) -> list[Tensor]:
        """Every branch's velocity; a commit that waits is made in the same call if it can be."""
        if self._waiting is not None and self._has_room(self._waiting[0], x):
            return self._predict_and_commit(x, t, block)
        self._write_waiting()
        if self.how != "none":
            self._make_room(x)
            return self.ask(x, t, block)
        if self._shown == block:
            self._retract(x)
        self._make_room(x)
        self._shown = block
        return self.ask(x, t, block, write_cache=True)

    def write(self, context: Tensor, t: Tensor, block: slice) -> None:
        """Make ``context`` the past, now, with the next call, or as it was shown last."""
        if self._shown == block:
            self._shown = None
            return
        self._write_waiting()
        self._waiting = (context, t, block)
        if self.how != "fused":
            self._write_waiting()

    def _predict_and_commit(self, x: Tensor, t: Tensor, block: slice) -> list[Tensor]:
        """The clean block sees the past and itself; the noisy one sees it too, and is forgotten."""
        context, context_t, earlier = self._waiting
        self._waiting = None
        sizes = (context.shape[1], x.shape[1])
        vs = self.ask(
            torch.cat([context, x], dim=1),
            torch.cat([context_t, t], dim=1),
            earlier,
            block,
            visible=block_causal(sizes),
            write_cache=True,
        )
        self._retract(x)
        return [v[:, sizes[0] :] for v in vs]

    def _write_waiting(self) -> None:
        if self._waiting is not None:
            (context, t, block), self._waiting = self._waiting, None
            self._make_room(context)
            self.ask(context, t, block, write_cache=True)

    def _has_room(self, *blocks: Tensor) -> bool:
        new = sum(block.shape[1] for block in blocks)
        return all(len(cache) + new <= self.window for _, cache in self.branches)

    def _make_room(self, x: Tensor) -> None:
        """Drop what the window has no place for beside the block ``x``."""
        if not self._has_room(x):
            for _, cache in self.branches:
                cache.keep(self.window - x.shape[1], self.sinks)

    def _retract(self, x: Tensor) -> None:
        for _, cache in self.branches:
            cache.retract(x.shape[1])
