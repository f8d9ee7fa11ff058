"""FlexAttention, compiled: the primal of masked attention on CUDA, with or without a tangent."""

from collections.abc import Callable
from functools import cache
from typing import Any

from lightning_modules.networks.wan.compiled import compiled


@cache
def flex_kernel(device_type: str) -> Callable[..., Any]:
    """It takes q, k, v [B, H, T, E] and torch's options.

    Compiled on CUDA, since as it is written it makes the dense matrix of all scores.
    """
    from torch.nn.attention.flex_attention import flex_attention

    if device_type != "cuda":
        return flex_attention
    return compiled(flex_attention)
