"""The tangent of a velocity along an ODE: ``d/ds v(x + s w, t + s)`` at ``s = 0``.

It is what continuous-time consistency models differentiate (sCM, arXiv 2410.11081; Causal-rCM,
arXiv 2606.25473, Eq. 15-17), here for rectified flow: ``w = dx/dt`` is the teacher's velocity. What
the velocity is conditioned on is held by the function ``v`` and has no tangent.

    exact     forward-mode differentiation (dual numbers): one pass of about twice the work
    central   (v(x + h w, t + h) - v(x - h w, t - h)) / 2h, one-sided at the ends of [0, 1]
    upwind    (v(x, t) - v(x - h w, t - h)) / h: one more call of v, as v(x, t) is known already

A difference is a low-pass filter: Wan's time features turn by up to 1000 radians per unit of t, and
a small network's exact tangent is mostly their noise. Knowledge moves from t = 0 upwards, and the
upwind difference, which looks where it comes from, is stable at the largest learning rates, as
upwind schemes are for transport. In bfloat16 a difference needs ``h >= 0.01``, the exact one
nothing.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lightning_modules.diffusion.flow import Velocity, per_frame

TangentOf = Callable[[Velocity, Tensor, Tensor, Tensor, Tensor, float], Tensor]
"""``(v, x, t, w, now, h)`` to the tangent ``[B, F, C, H, W]``; ``now`` is ``v(x, t)``."""
Tangent = Literal["exact", "central", "upwind"]


def exact(v: Velocity, x: Tensor, t: Tensor, w: Tensor, now: Tensor, h: float) -> Tensor:
    """By dual numbers; ``h`` is not used.

    Attention has a form of its own, of memory linear in the tokens (`tangent_attention.py`), which
    has no gradient: call it beneath `torch.no_grad`. `torch.func.jvp` would refuse the network's
    Functions, which have no `setup_context`; dual numbers take them with a `jvp` alone.
    """
    with forward_ad.dual_level():
        time = (
            t.contiguous()
        )  # a dual tensor may not repeat itself in memory, as an expanded t does
        answer = v(forward_ad.make_dual(x, w), forward_ad.make_dual(time, torch.ones_like(time)))
        return forward_ad.unpack_dual(answer).tangent


def central(v: Velocity, x: Tensor, t: Tensor, w: Tensor, now: Tensor, h: float) -> Tensor:
    """The central difference, of half its width where an end is nearer than ``h``."""
    up, down = (t + h).clamp(max=1.0) - t, t - (t - h).clamp(min=0.0)
    ahead = v(x + per_frame(up) * w, t + up)
    behind = v(x - per_frame(down) * w, t - down)
    return (ahead - behind) / per_frame(up + down)


def upwind(v: Velocity, x: Tensor, t: Tensor, w: Tensor, now: Tensor, h: float) -> Tensor:
    """The backward difference; at ``t = 0``, where nothing lies behind, zero."""
    down = t - (t - h).clamp(min=0.0)
    behind = v(x - per_frame(down) * w, t - down)
    return (now - behind) / per_frame(down.clamp(min=torch.finfo(t.dtype).tiny))


TANGENTS: dict[Tangent, TangentOf] = {"exact": exact, "central": central, "upwind": upwind}
