"""Flow matching on the straight path between data and noise: conversions and time grids.

    x_t = (1 - t) x0 + t eps        v = d x_t / d t = eps - x0        t in [0, 1], 1 = noise

Tensors are ``[B, F, C, H, W]`` with ``t`` ``[B, F]``, fp32. Grids are computed in fp64. Sigmas are
exact, not looked up in a table of 1000 (networks get ``1000 t`` as Wan does).
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
    """Timestep shift towards noise: ``s u / (1 + (s - 1) u)``; 0 and 1 are fixed (Wan: s = 5)."""
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
    """``G(x_t, t) = x_t - t v``: the x0 prediction of a velocity (Causal Forcing++, Eq. 4)."""
    return x_t - per_frame(t) * v


def euler(v: Velocity, x_t: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """A first-order step of ``dx/dt = v(x, t)`` from ``t`` to ``t_next``: one call of v."""
    return x_t + per_frame(t_next - t) * v(x_t, t)


def heun(v: Velocity, x_t: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """A second-order step: the mean of the slopes at both ends, two calls of v.

    An Euler step where it ends at t = 0 (Karras et al. 2022, Algorithm 1): networks are not trained
    there. The order of the whole solution stays two.
    """
    slope = v(x_t, t)
    ahead = v(x_t + per_frame(t_next - t) * slope, t_next)
    mean = torch.where(per_frame(t_next) == 0, slope, (slope + ahead) / 2)
    return x_t + per_frame(t_next - t) * mean


Solver = Literal["euler", "heun"]
"""The solvers of ODEs by their names in recipes; all published methods use Euler."""
SOLVERS: dict[Solver, Callable[[Velocity, Tensor, Tensor, Tensor], Tensor]] = {
    "euler": euler,
    "heun": heun,
}


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance ``u + w (c - u)``; ``w = 1`` is the conditional prediction.

    The only convention of this project. ``c + 3 (c - u)`` of published DMD code is w = 4.
    """
    return unconditional + scale * (conditional - unconditional)


@lru_cache
def _training_weight_moments(by: float) -> tuple[float, float]:
    bell = torch.exp(-2 * (time_grid(1000, by)[:-1] - 0.5) ** 2)
    return bell.min().item(), (bell - bell.min()).mean().item()


def training_weight(t: Tensor, by: float) -> Tensor:
    """The training weight: a bell around t = 1/2, zero at pure noise, mean 1 over 1000 steps.

    ``w(t) ~ exp(-2 (t - 1/2)^2) - min``, as in the schedulers of CausVid and Self Forcing.
    """
    lowest, mean = _training_weight_moments(by)
    return (torch.exp(-2 * (t - 0.5) ** 2) - lowest) / mean
