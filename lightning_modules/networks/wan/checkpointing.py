"""Activation checkpointing of a layer: recompute in the backward pass, but what is dear and small.

Of all that a layer computes, self-attention's output takes the most operations for the memory that
it holds: ``4 K`` a value, with ``K`` visible keys. It is kept, with its log-sum-exp, and everything
else is recomputed, cross-attention too, whose prompt is short. What is kept is what would have been
recomputed, so that gradients have the same bits.

FlexAttention is compiled as a whole, and recomputed.

Source: selective activation checkpointing, Korthikanti et al. (2022), arXiv 2205.05198.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from lightning_modules.networks.wan.merged_attention import merged_attention
from lightning_modules.ranges import Checkpointing

aten = torch.ops.aten
ATTENTION = frozenset(
    {
        merged_attention._opoverload,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)
"""Kernels, which are called with q, k and v first, and return the output and its log-sum-exp."""


def checkpointed(layer: Callable[..., Any], how: Checkpointing) -> Callable[..., Any]:
    """The layer, whose activations are recomputed when the backward pass comes to it.

    Args:
        layer: a function of tensors.
        how: ``full``: recompute self-attention's output too; else it is kept.
    """
    run = partial(checkpoint, layer, use_reentrant=False)
    if how == "full":
        return run
    return partial(run, context_fn=partial(create_selective_checkpoint_contexts, _policy))


def _policy(_context: Any, op: Any, *arguments: Any, **_options: Any) -> CheckpointPolicy:
    """Self-attention sees at least its own tokens, cross-attention a prompt of fewer."""
    if op in ATTENTION and arguments[1].numel() >= arguments[0].numel():
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
