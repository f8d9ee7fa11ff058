"""Attention of tokens whose visibility is decided frame by frame: the only caller of a kernel.

Callers hand over one matrix [query frame, key frame] (`masks.py` gives it the form a kernel wants)
and the kernel is chosen here:

    dense   scaled_dot_product_attention; with an additive mask where something is hidden
    flex    FlexAttention, compiled, where something is hidden: skips what no frame sees
    flash   flash-attn, where nothing is hidden, or only the end of the keys; never required

`auto` is dense on a CPU. On CUDA it is flash (dense where flash-attn cannot be used or the dtype
is not half) where nothing is hidden, or where without gradient each frame sees a prefix; dense for
masks of up to `SMALL` bytes; else flex. What an algorithm computes never depends on the choice, and
none of them needs memory that grows with the square of many tokens: a dense mask too large is
refused (`masks.DENSE_LIMIT`).
"""

import importlib.util
import logging
from collections.abc import Callable
from functools import cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.networks.wan.masks import (
    Prefixes,
    block_mask,
    dense_bytes,
    dense_mask,
    hidden_rows,
    prefixes,
)

log = logging.getLogger(__name__)
Backend = Literal["auto", "dense", "flex", "flash"]
HALF = (torch.bfloat16, torch.float16)
SMALL = 2**25
"""Bytes of a dense mask up to which compiling FlexAttention is not worth its while."""
SHAPES = 64
"""Shapes FlexAttention may be compiled for in one process; torch's own limit of 8 is soon met."""

Mask = Tensor | Prefixes | object | None
"""A dense mask, prefixes, or FlexAttention's BlockMask, which is imported only where it is used."""

_forced: Backend = "auto"


def use(backend: Backend, device: torch.device) -> None:
    """Choose the kernel of every network of this process.

    Raises:
        ValueError: unknown, or not usable on `device`, with the reason.
    """
    global _forced
    if backend not in get_args(Backend):
        known = ", ".join(get_args(Backend))
        raise ValueError(f"launch.attention: {backend!r} is none of {known}")
    if backend in ("flex", "flash") and device.type != "cuda":
        reason = {
            "flex": "FlexAttention has no gradient on a CPU and is compiled for CUDA only",
            "flash": "flash-attn runs on CUDA only",
        }[backend]
        raise ValueError(f"launch.attention: {backend} cannot run here: {reason}; use auto")
    if backend == "flash" and (reason := flash_missing()):
        raise ValueError(
            f"launch.attention: flash cannot run here: {reason}; pip install flash-attn"
            " --no-build-isolation, or use auto"
        )
    _forced = backend
    _say.cache_clear()


@cache
def flash_missing() -> str | None:
    """Why flash-attn cannot be used, said once in the log; None if it can: it is imported then."""
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    try:
        importlib.import_module("flash_attn")
    except ImportError as error:
        reason = f"flash-attn does not load ({error}): probably it was built for another torch"
        log.warning("attention: %s", reason)
        return reason
    return None


def choose(device: torch.device, small: bool, prefixed: bool, gradient: bool) -> str:
    """The kernel for frames of which some are hidden: `dense`, `flex`, or `flash` by prefixes.

    Raises:
        ValueError: if flash-attn is forced on a matrix that hides more than the end of the keys.
    """
    if _forced == "flash" and not prefixed:
        raise ValueError(
            "launch.attention: flash-attn takes no mask, and this pass hides frames between others"
            " (teacher forcing does); use auto or flex"
        )
    if _forced != "auto":
        return _forced
    if device.type != "cuda":
        return "dense"
    if prefixed and not gradient:
        return "flash"
    return "dense" if small else "flex"


def spread(
    visible: Tensor | None, tokens: int, cached: int, device: torch.device, dtype: torch.dtype
) -> Mask:
    """Spread a frame matrix over tokens, in the form of the chosen kernel, for `attend`.

    Args:
        visible: [N, N] bool, row = query frame; None: all see all.
        tokens: tokens per frame.
        cached: frames in front of the keys that come from a cache, seen by all.
        device: where the mask will be used.
        dtype: of a dense mask.

    Returns:
        What hides keys from queries [N * tokens, (cached + N) * tokens]; None when nothing does.
        Equal calls share one object: do not write to it.

    Raises:
        ValueError: if `visible` is not a square bool matrix, a frame would see nothing, a dense
            mask would be too large, or the forced kernel cannot hide what is hidden.
    """
    rows = hidden_rows(visible, cached)
    if rows is None:
        return None
    pieces = prefixes(rows, tokens, cached)
    small = dense_bytes(rows, tokens, cached, dtype) <= SMALL
    kernel = choose(device, small, pieces is not None, torch.is_grad_enabled())
    _say(f"{kernel} where frames are hidden", device.type)
    if kernel == "flash":
        return pieces
    if kernel == "flex":
        return block_mask(rows, tokens, cached, device)
    return dense_mask(rows, tokens, cached, device, dtype)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Mask = None) -> Tensor:
    """Softmax attention.

    Args:
        queries: [B, T, heads, head_dim].
        keys: [B, K, heads, head_dim].
        values: as `keys`.
        mask: what `spread` returned; None: all see all.

    Returns:
        [B, T, heads * head_dim].
    """
    if mask is None:
        out = _all_see_all(queries, keys, values)
    elif isinstance(mask, Tensor):
        out = _dense(queries, keys, values, mask)
    elif isinstance(mask, tuple):
        out = _by_prefix(queries, keys, values, mask)
    else:
        out = _flex(queries, keys, values, mask)
    return out.flatten(2)


def _dense(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    out = F.scaled_dot_product_attention(
        queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask
    )
    return out.transpose(1, 2)


def _all_see_all(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """flash-attn where it can be had; without a mask SDPA's memory is linear in the tokens too."""
    if _forced == "flash" and queries.dtype not in HALF:
        raise ValueError(
            f"launch.attention: flash-attn computes in bfloat16 or float16, the queries are"
            f" {queries.dtype}: set a bf16 precision, or use auto"
        )
    if not _takes_flash(queries):
        _say("dense where none is hidden", queries.device.type)
        return _dense(queries, keys, values)
    _say("flash where none is hidden", queries.device.type)
    return _flash()(queries, keys, values)


def _takes_flash(queries: Tensor) -> bool:
    allowed = _forced != "dense" and queries.device.type == "cuda" and queries.dtype in HALF
    return allowed and flash_missing() is None


def _by_prefix(queries: Tensor, keys: Tensor, values: Tensor, pieces: Prefixes) -> Tensor:
    starts = (0, *(end for end, _ in pieces))
    return torch.cat(
        [
            _all_see_all(queries[:, start:end], keys[:, :seen], values[:, :seen])
            for start, (end, seen) in zip(starts, pieces, strict=False)
        ],
        dim=1,
    )


def _flex(queries: Tensor, keys: Tensor, values: Tensor, mask: object) -> Tensor:
    kernel = _flex_kernel(queries.device.type)
    parts = (part.transpose(1, 2) for part in (queries, keys, values))
    return kernel(*parts, block_mask=mask).transpose(1, 2)


@cache
def _flex_kernel(device_type: str) -> Callable[..., Tensor]:
    """Compiled on CUDA for each shape anew: a shape too many is an error (`fullgraph`).

    By default the compiler would then fall back, with one warning, to a kernel that makes the dense
    matrix of all scores.
    """
    from torch.nn.attention.flex_attention import flex_attention

    if device_type != "cuda":
        return flex_attention
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


@cache
def _flash() -> Callable[..., Tensor]:
    from flash_attn import flash_attn_func

    return flash_attn_func


@cache
def _say(what: str, device_type: str) -> None:
    """Once per run (`use` starts one)."""
    log.info("attention: %s (%s)", what, device_type)
