"""torch.compile, for each shape anew, and never silently not."""

from collections.abc import Callable
from typing import Any

SHAPES = 128
"""Shapes a function may be compiled for in one process, of which the last layer has its own where
not all frames are predicted; torch's own limit of 8 is soon met."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function; exceeding the limit of shapes is an error (`fullgraph`).

    By default torch would then run the function as it is written, with one warning.
    """
    import torch
    import torch._dynamo

    config = torch._dynamo.config
    config.recompile_limit = max(SHAPES, config.recompile_limit)
    return torch.compile(function, dynamic=False, fullgraph=True)
