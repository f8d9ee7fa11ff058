"""The straight path between data and noise: every conversion and every time grid, once.

    x_t = (1 - t) x0 + t eps        v = d x_t / d t = eps - x0        t in [0, 1], 1 = noise

Tensors are ``[B, F, C, H, W]`` with ``t`` ``[B, F]``, fp32. Grids are computed in fp64. There is no
lookup table: the sigma used is the sigma asked for (Causal Forcing++, eq. 4; Wan feeds ``1000 t``).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)
Velocity = Callable[[Tensor, Tensor], Tensor]
"""``v(x_t, t)`` with ``t`` ``[B, F]``."""


def per_frame(t: Tensor) -> Tensor:
    """``[B, F]`` -> ``[B, F, 1, 1, 1]``, so that a time per frame broadcasts over its latents."""
    return t[:, :, None, None, None]


def shift(u: Number, by: float) -> Number:
    """Warp uniform time towards noise: ``s u / (1 + (s - 1) u)``; 0 and 1 stay (Wan: s = 5)."""
    return by * u / (1 + (by - 1) * u)


def time_grid(intervals: int, by: float) -> Tensor:
    """The shifted grid from noise to data, ``[intervals + 1]`` fp64, first 1 and last exactly 0.

    The published few-step lists are such grids: raw 1000/750/500/250 warped by s = 5 is
    ``time_grid(4, 5.0)[:-1]``, and every N-th point of the 48-interval ODE grid.
    """
    return shift(torch.linspace(1, 0, intervals + 1, dtype=torch.float64), by)


def add_noise(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """The clip at time ``t``: ``(1 - t) x0 + t eps``. At t = 0 it is ``x0`` itself."""
    t = per_frame(t)
    return (1 - t) * x0 + t * eps


def velocity(x0: Tensor, eps: Tensor) -> Tensor:
    """The target of flow matching, ``eps - x0``."""
    return eps - x0


def to_x0(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Where the straight line through ``x_t`` with slope ``v`` meets data: ``x_t - t v``."""
    return x_t - per_frame(t) * v


def euler(v: Velocity, x_t: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """One step of ``dx/dt = v(x, t)`` from ``t`` to ``t_next``, of first order: one call of v."""
    return x_t + per_frame(t_next - t) * v(x_t, t)


def heun(v: Velocity, x_t: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """The same step of second order: the mean of the slopes at both ends, two calls of v."""
    slope = v(x_t, t)
    ahead = v(x_t + per_frame(t_next - t) * slope, t_next)
    return x_t + per_frame(t_next - t) * (slope + ahead) / 2


Solver = Literal["euler", "heun"]
"""The names of steps that a recipe may write; all published methods use Euler."""
SOLVERS: dict[Solver, Callable[[Velocity, Tensor, Tensor, Tensor], Tensor]] = {
    "euler": euler,
    "heun": heun,
}


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance ``u + w (c - u)``; ``w = 1`` is the conditional prediction.

    The one convention of this project. Published DMD code writes ``c + 3 (c - u)``: that is w = 4.
    """
    return unconditional + scale * (conditional - unconditional)


@lru_cache
def _training_weight_moments(by: float) -> tuple[float, float]:
    bell = torch.exp(-2 * (time_grid(1000, by)[:-1] - 0.5) ** 2)
    return bell.min().item(), (bell - bell.min()).mean().item()


def training_weight(t: Tensor, by: float) -> Tensor:
    """Wan's loss weight: a bell around t = 1/2, zero at pure noise, mean 1 over the 1000-step grid.

    ``w(t) ~ exp(-2 (t - 1/2)^2) - min``, as CausVid's and Self Forcing's schedulers have it.
    """
    lowest, mean = _training_weight_moments(by)
    return (torch.exp(-2 * (t - 0.5) ** 2) - lowest) / mean
