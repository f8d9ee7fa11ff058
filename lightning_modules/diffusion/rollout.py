"""Autoregressive rollout: one loop for training, sampling, streaming and ODE pairs.

    for each block:   x0 = denoise(noise of the block | context)
                      commit x0 (or the ground-truth block): update the KV cache

Uses differ in two arguments: *how a block is denoised* (:class:`FewSteps`, which may exit early
with gradient, or :class:`Solve`, the teacher's ODE) and *what is committed*. The KV cache is
written without gradient, so no block's loss reaches an earlier block.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightning_modules.diffusion.flow import (
    SOLVERS,
    Solver,
    Velocity,
    add_noise,
    guide,
    time_grid,
    to_x0,
)
from lightning_modules.diffusion.forcing import VelocityNetwork
from lightning_modules.diffusion.visibility import spans

Denoise = Callable[["Past", Tensor, slice, int], Tensor]
Frames = Callable[[slice], Tensor]
"""From the frames of a block to their ``[B, n, C, H, W]``: cut from a clip, or drawn when asked."""


class Past:
    """The context of a rollout: the guided velocity of a block given the committed blocks.

    ``v(x, t | context)``; with guidance the conditional and the unconditional branch are one batch
    of twice the clips, with one KV cache, so that weights are read once for both. For whole clips
    that would double large activations, so there each branch has a call (`forcing.guided`).

    Args:
        net: a network under the contract.
        text: prompts ``[B, L, D]``.
        negative: the negative prompt ``[L, D]``; needed when ``guidance`` is not 1.
        guidance: CFG scale, 1 = none.
    """

    def __init__(
        self,
        net: VelocityNetwork,
        text: Tensor,
        negative: Tensor | None = None,
        guidance: float = 1.0,
    ) -> None:
        self.net, self.guidance, self.negative = net, guidance, negative
        self.cache = self.new_cache()
        self.ask(text)

    def ask(self, text: Tensor) -> None:
        """The prompts ``[B, L, D]`` of the calls to come."""
        guided = self.guidance != 1
        self.text = torch.cat([text, self.negative.expand_as(text)]) if guided else text

    def velocity(self, x: Tensor, t: Tensor, block: slice) -> Tensor:
        """At ``x`` ``[B, n, C, H, W]``, time ``t`` (a scalar or ``[B, n]``), frames ``block``."""
        v = self.predict(x, _level(t, x), block)
        return v if self.guidance == 1 else guide(*v.chunk(2), self.guidance)

    @torch.no_grad()
    def commit(
        self, x0: Tensor, block: slice, context_t: float = 0.0, context_eps: Tensor | None = None
    ) -> None:
        """Append ``x0`` to the context, noised to ``context_t``, at which the net is called."""
        t = torch.full(x0.shape[:2], context_t, dtype=torch.float32, device=x0.device)
        context = x0.detach() if context_t == 0 else add_noise(x0.detach(), context_eps, t)
        self.write(context, t, block)

    # -- overridden by FastPast ---------------------------------------------------------------

    def new_cache(self) -> Any:
        """The KV cache of all branches."""
        return self.net.new_cache()

    def predict(self, x: Tensor, t: Tensor, block: slice) -> Tensor:
        """All branches' velocities ``[1 or 2 B, n, C, H, W]`` at ``x`` and ``t`` ``[B, n]``."""
        return self.forward(x, t, block)

    def write(self, context: Tensor, t: Tensor, block: slice) -> None:
        """Update the KV cache with ``context`` at ``t`` ``[B, n]``."""
        self.forward(context, t, block, write_cache=True, predicted=0)

    def forward(self, x: Tensor, t: Tensor, *blocks: slice, **how: Any) -> Tensor:
        """One forward pass for all branches; ``x`` has the frames of all ``blocks``, joined."""
        frames = torch.cat([torch.arange(block.start, block.stop) for block in blocks])
        if self.guidance != 1:
            x, t = torch.cat([x, x]), torch.cat([t, t])
        return self.net(x, t, self.text, frames=frames, cache=self.cache, **how)


class FewSteps:
    """Few-step consistency sampling: predict x0, re-noise, repeat (Causal Forcing++, sec. 3.2).

    Args:
        times: each block's noise levels (``denoising_step_list``), descending from 1, without 0.
        renoise: ``step -> [B, F, C, H, W]``, the fresh noise before step 1, 2, ... of every block.
        exits: each block's exit step (``exit_flag``); ``None``: the last. Only the exit step has
            gradient (Self Forcing's gradient truncation), if gradient is enabled.
    """

    def __init__(
        self,
        times: Sequence[Tensor],
        renoise: Callable[[int], Tensor],
        exits: Sequence[int] | None = None,
    ) -> None:
        self.times, self.renoise = times, cache(renoise)
        self.exits = [len(steps) - 1 for steps in times] if exits is None else exits

    def __call__(self, past: Past, x: Tensor, block: slice, index: int) -> Tensor:
        """``x0`` of block ``index``, of frames ``block``, at the exit step."""
        times = self.times[index][: self.exits[index] + 1]
        return few_steps(past, x, block, times, lambda step: self.renoise(step)[:, block])


def few_steps(
    past: Past, x: Tensor, block: slice, times: Tensor, renoise: Callable[[int], Tensor]
) -> Tensor:
    """``x0`` of one block, from noise ``x``; only the last step has gradient.

    Args:
        times: noise levels, descending from 1.
        renoise: ``step -> [B, n, C, H, W]``, the block's fresh noise before step 1, 2, ...
    """
    x0 = x
    for step, t in enumerate(times):
        with torch.set_grad_enabled(torch.is_grad_enabled() and step == len(times) - 1):
            if step > 0:
                x = add_noise(x0, renoise(step), _level(t, x))
            x0 = to_x0(x, past.velocity(x, t, block), _level(t, x))
    return x0


class Solve:
    """The multi-step ODE sampler: along ``grid`` (fp64, 1 .. 0) from noise to data.

    ``keep`` are the grid points whose states are stored for ODE pairs; ``states`` then has
    ``[B, len(keep), n, C, H, W]`` per block.
    """

    def __init__(self, grid: Tensor, keep: Collection[int] = (), solver: Solver = "euler") -> None:
        self.grid, self.keep, self.solver = grid.float(), keep, solver
        self.states: list[Tensor] = []

    def __call__(self, past: Past, x: Tensor, block: slice, index: int) -> Tensor:
        """The endpoint of block ``index``'s ODE; its kept states are appended to ``states``."""

        def v(x: Tensor, t: Tensor) -> Tensor:
            return past.velocity(x, t, block)

        x, states = solve(v, x, self.grid, self.keep, self.solver)
        if self.keep:
            self.states.append(states)
        return x


def solve(
    v: Velocity,
    x: Tensor,
    grid: Tensor,
    keep: Collection[int] = (),
    solver: Solver = "euler",
) -> tuple[Tensor, Tensor | None]:
    """Integrate from ``grid[0]`` to ``grid[-1]``: endpoint, and kept states ``[B, S, ...]``."""
    advance, states = SOLVERS[solver], []
    for step, (t, t_next) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        if step in keep:
            states.append(x)
        x = advance(v, x, _level(t, x), _level(t_next, x))
    if len(grid) - 1 in keep:
        states.append(x)
    return x, torch.stack(states, dim=1) if states else None


def few_step_times(sizes: Sequence[int], steps: int, first_steps: int, by: float) -> list[Tensor]:
    """Each block's noise levels: a shifted grid of ``steps``, for block 0 of ``first_steps``.

    Causal Forcing++ gives the first frame, which has no context, four steps in its 1- and 2-step
    students (sec. 3.2, the ASD trick).
    """
    first, rest = (time_grid(m, by)[:-1].float() for m in (first_steps, steps))
    return [first] + [rest] * (len(sizes) - 1)


def block_times(sizes: Sequence[int], levels: Sequence[Sequence[float]], key: str) -> list[Tensor]:
    """Each block's noise levels from a list per block, the last one repeated.

    Raises:
        ValueError: names ``key``: more lists than blocks, a list that does not fall from 1 to above
            0, or one that is longer than that of the block before.
    """
    if len(levels) > len(sizes):
        raise ValueError(f"{key}: {len(levels)} lists for {len(sizes)} blocks; remove some")
    for before, steps in zip([levels[0], *levels], levels, strict=False):
        falls = all(a > b for a, b in zip(steps, steps[1:], strict=False))
        if not steps or steps[0] != 1 or steps[-1] <= 0 or not falls or len(steps) > len(before):
            raise ValueError(
                f"{key}: {list(steps)} must fall from 1 to above 0, and not be longer than that of"
                " the block before"
            )
    times = [torch.tensor(steps, dtype=torch.float64).float() for steps in levels]
    return times + times[-1:] * (len(sizes) - len(times))


def stream(
    past: Past,
    noise: Frames,
    sizes: Iterable[int],
    denoise: Denoise,
    truth: Tensor | None = None,
    conditioning: Tensor | None = None,
    context_t: float = 0.0,
    context_eps: Frames | None = None,
) -> Iterator[Tensor]:
    """Yield each block's ``x0`` once denoised; commit it only when the next block is requested.

    Args:
        noise: the initial noise.
        sizes: of the blocks; they need not end.
        truth: commit these frames instead of the generated ones (teacher-forced generation).
        conditioning: ``[B, k, C, H, W]``, the first ``k`` frames (whole blocks): yielded and
            committed without denoising (image to video: the image is frame 0).
        context_t: the noise level of the context, as in training (``context_noise``).
        context_eps: its noise; required if ``context_t`` is not 0.
    """
    known = 0 if conditioning is None else conditioning.shape[1]
    before: tuple[Tensor, slice] | None = None
    for index, block in enumerate(spans(sizes)):
        if before is not None:
            eps = None if context_eps is None else context_eps(before[1])
            past.commit(*before, context_t, eps)
        is_known = block.stop <= known
        x0 = conditioning[:, block] if is_known else denoise(past, noise(block), block, index)
        yield x0
        before = (x0 if truth is None else truth[:, block], block)


def rollout(
    past: Past,
    noise: Tensor,
    sizes: Sequence[int],
    denoise: Denoise,
    context_eps: Tensor | None = None,
    **how: Any,
) -> Tensor:
    """The clip of :func:`stream` (same arguments, noise ``[B, F, C, H, W]``), of that shape."""
    eps = None if context_eps is None else cut(context_eps)
    return torch.cat(list(stream(past, cut(noise), sizes, denoise, context_eps=eps, **how)), dim=1)


def cut(clip: Tensor) -> Frames:
    """The frames of a whole clip ``[B, F, C, H, W]``."""
    return lambda block: clip[:, block]


def _level(t: Tensor, x: Tensor) -> Tensor:
    return t.to(device=x.device, dtype=torch.float32).expand(x.shape[:2])
