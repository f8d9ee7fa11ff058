"""FlexAttention, compiled: the primal of masked attention on CUDA, with or without a tangent."""

from collections.abc import Callable
from functools import cache
from typing import Any

SHAPES = 64
"""Shapes FlexAttention may be compiled for in one process; torch's own limit of 8 is soon met."""


@cache
def flex_kernel(device_type: str) -> Callable[..., Any]:
    """Compiled on CUDA for each shape; exceeding the limit of shapes is an error (`fullgraph`).

    By default the compiler would then fall back, with one warning, to a kernel that makes the dense
    matrix of all scores. It takes q, k, v [B, H, T, E] and torch's options.
    """
    from torch.nn.attention.flex_attention import flex_attention

    if device_type != "cuda":
        return flex_attention
    import torch
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)
