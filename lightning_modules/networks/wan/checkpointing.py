"""Activation checkpointing of a layer, which keeps what is expensive to recompute and small.

Of all that a layer computes, self-attention's output takes the most operations for the memory that
it holds: ``4 K`` a value, with ``K`` visible keys. It is kept, with its log-sum-exp, and everything
else is recomputed, cross-attention too, whose prompt is short. What is kept is what would have been
recomputed, so that gradients have the same bits.

torch's own `create_selective_checkpoint_contexts` asks that recomputing runs exactly the operations
of the forward pass; under ZeRO-3, whose hooks gather and release a layer's weights, it does not.

FlexAttention, which is compiled as a whole, and flash-attn are recomputed. One backward pass takes
what is kept; a second one needs ``full``.

Source: selective activation checkpointing, Korthikanti et al. (2022), arXiv 2205.05198.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

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

Kept = deque[Any]  # results of kernels, in the order of their calls


def recomputes(kernel: str, how: Checkpointing) -> bool:
    """Whether a layer that is checkpointed so runs this kernel of `attention.py` once more."""
    return how == "full" or (bool(how) and kernel in ("flex", "flash"))


def checkpointed(layer: Callable[..., Any], how: Checkpointing) -> Callable[..., Any]:
    """The layer, whose activations are recomputed when the backward pass comes to it.

    Args:
        layer: a function of tensors.
        how: ``full``: recompute self-attention's output too; else it is kept.
    """
    run = partial(checkpoint, layer, use_reentrant=False)
    return run if how == "full" else partial(run, context_fn=_contexts)


def _contexts() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """Of the forward pass, and of its recomputation."""
    kept: Kept = deque()
    return _Keep(kept), _Recall(kept)


class _Mode(TorchDispatchMode):
    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self.kept = kept

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled parts of a layer stay compiled."""
        return True


class _Keep(_Mode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if _is_self_attention(func, args):
            self.kept.append(tree_map_only(Tensor, Tensor.detach, made))
        return made


class _Recall(_Mode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_self_attention(func, args):
            return func(*args, **(kwargs or {}))
        if not self.kept:
            raise RuntimeError(
                "a second backward pass through a checkpointed layer: set its network's"
                " gradient_checkpointing to 'full'"
            )
        return self.kept.popleft()


def _is_self_attention(func: Any, args: Any) -> bool:
    """It sees at least its own tokens; cross-attention a prompt of fewer."""
    return func in ATTENTION and args[1].numel() >= args[0].numel()
