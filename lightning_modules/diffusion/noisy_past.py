"""Noisy context in training: the keys of a block's last denoising call stay (Causal-rCM, sec. 4).

Without a pass at t = 0 a block of N steps takes N calls. `FastPast` with ``noisy_from`` samples so;
this is its twin for training, where the last call may carry gradient and a rollout may leave early.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.diffusion.flow import add_noise
from lightning_modules.diffusion.forcing import VelocityNetwork
from lightning_modules.diffusion.rollout import Past
from lightning_modules.diffusion.visibility import spans


class NoisyPast(Past):
    """A :class:`Past` whose blocks from ``noisy_from`` on stay in the context as noisy as they were
    last seen.

    A block that left its sampler early is noised to the level at which its last call would have
    been, so that the context has the same law whatever the exit.

    Args:
        net, text: of :class:`Past`; students have no guidance.
        sizes: frames per block.
        times: each block's noise levels.
        eps: ``[B, F, C, H, W]``, the noise of blocks that left early.
        noisy_from: index of the first block that stays noisy; published 1.
    """

    def __init__(
        self,
        net: VelocityNetwork,
        text: Tensor,
        *,
        sizes: Sequence[int],
        times: Sequence[Tensor],
        eps: Tensor,
        noisy_from: int,
    ) -> None:
        super().__init__(net, text)
        blocks = list(zip(spans(sizes), times, strict=True))[noisy_from:]
        self._times = {block.start: levels.to(eps.device) for block, levels in blocks}
        self._eps = eps
        self._calls: list[tuple[Tensor, Tensor]] = []

    def predict(self, x: Tensor, t: Tensor, block: slice) -> Tensor:
        """The velocity; the question is remembered."""
        self._calls.append((x.detach(), t))
        return super().predict(x, t, block)

    @torch.no_grad()
    def commit(
        self, x0: Tensor, block: slice, context_t: float = 0.0, context_eps: Tensor | None = None
    ) -> None:
        """Append the block's last noisy input, or ``x0`` as :class:`Past` does."""
        calls, self._calls = self._calls, []
        if block.start not in self._times:
            super().commit(x0, block, context_t, context_eps)
            return
        levels = self._times[block.start]
        x, t = calls[-1]
        if len(calls) < len(levels):
            t = levels[-1].expand(x0.shape[:2])
            x = add_noise(x0, self._eps[:, block], t)
        self.write(x, t, block)


def require_noisy_context(steps: Sequence[int], noisy_from: int | None, key: str) -> None:
    """`require_noisy_block` and `require_two_steps`, of a setting ``key``."""
    require_noisy_block(len(steps), noisy_from, key)
    require_two_steps(steps, noisy_from, f"{key}: {noisy_from}", "noisy_from to null")


def require_two_steps(steps: Sequence[int], noisy_from: int | None, said: str, cure: str) -> None:
    """Refuse a noisy block of one step, whose context would be pure noise; the last is nobody's.

    Args:
        steps: of each block.
        noisy_from: index of the first block that stays noisy; None: none.
        said: the setting that keeps it noisy, as ``key: value``.
        cure: what else to set.

    Raises:
        ValueError: ``said``, why not, and ``cure``.
    """
    if noisy_from is not None and any(count < 2 for count in steps[noisy_from:-1]):
        raise ValueError(
            f"{said}, but a block that stays noisy has one step: its context would be pure noise;"
            f" give each block two, or set {cure}"
        )


def require_noisy_block(blocks: int, noisy_from: int | None, key: str) -> None:
    """Refuse a first noisy block that a clip does not have: none of its blocks would stay noisy.

    Args:
        blocks: of the clip.
        noisy_from: index of the first block that stays noisy; None: none shall.
        key: the setting, for the message.

    Raises:
        ValueError: names ``key`` and the cure.
    """
    if noisy_from is not None and noisy_from >= blocks:
        raise ValueError(
            f"{key}: {noisy_from}, but the last block of the clip is {blocks - 1}, so none would"
            f" stay noisy; lower it, or set {key.rpartition('.')[2]} to null"
        )
