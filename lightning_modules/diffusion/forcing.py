"""The forcings: bidirectional, diffusion forcing and teacher forcing, each one parallel forward.

Each function returns the velocity ``[B, F, C, H, W]`` at the noisy clip ``x_t`` and times ``t``
``[B, F]``. ``sizes`` are the frames per block; ``net`` keeps the network contract.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_modules.diffusion import visibility
from lightning_modules.diffusion.flow import guide

VelocityNetwork = Callable[..., Tensor]
"""A network under the contract of ``networks/__init__.py``, or anything that is called so."""


def bidirectional(net: VelocityNetwork, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """Full attention: the base model, and both scores of asymmetric DMD."""
    return net(x_t, t, text, frames=_positions(x_t))


def diffusion_forcing(
    net: VelocityNetwork, x_t: Tensor, t: Tensor, text: Tensor, sizes: Sequence[int]
) -> Tensor:
    """Each block attends to the *noisy* earlier blocks (CausVid; Self Forcing's ODE init)."""
    visible = visibility.block_causal_mask(sizes)
    return net(x_t, t, text, frames=_positions(x_t), visible=visible)


def teacher_forcing(
    net: VelocityNetwork,
    x_t: Tensor,
    t: Tensor,
    text: Tensor,
    sizes: Sequence[int],
    clean: Tensor,
    clean_t: Tensor | None = None,
    until: Tensor | None = None,
) -> Tensor:
    """Each block attends to the *clean* earlier blocks: ``v(x_t^i | clean^{<i}, t)`` for all i.

    ``clean_t`` ``[B, F]`` is the noise level of the clean half, zeros unless the context is noised.
    ``until`` ``[B, F]`` is the second time of a network that has one (`networks/wan/two_time.py`).
    """
    clean_t = torch.zeros_like(t) if clean_t is None else clean_t
    second = {} if until is None else {"until": torch.cat([clean_t, until], dim=1)}
    return net(
        torch.cat([clean, x_t], dim=1),
        torch.cat([clean_t, t], dim=1),
        text,
        frames=_positions(x_t).repeat(2),
        visible=visibility.teacher_forcing_mask(sizes),
        predicted=x_t.shape[1],
        **second,
    )


def guided(v: Callable[[Tensor], Tensor], text: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of a velocity ``v(text)`` with the ``negative`` prompt ``[L, D]``.

    At scale 1 the unconditional branch is not evaluated.
    """
    conditional = v(text)
    if scale == 1:
        return conditional
    return guide(conditional, v(negative.expand_as(text)), scale)


def bidirectional_ode(
    net: VelocityNetwork, text: Tensor, negative: Tensor, guidance: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """The guided bidirectional velocity as ``v(x, t)``, ``t`` a scalar or ``[B, F]``."""

    def v(x: Tensor, t: Tensor) -> Tensor:
        level = t.to(x).expand(x.shape[:2])
        return guided(lambda c: bidirectional(net, x, level, c), text, negative, guidance)

    return v


def _positions(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1])
