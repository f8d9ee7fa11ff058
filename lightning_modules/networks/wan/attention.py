"""Attention under a frame-level mask: the only module that calls an attention kernel.

Shapes: q [B, T, H, E]; k and v [B, K, H, E]; output [B, T, H * E], with T query tokens, K key
tokens, H heads of E channels. A mask comes as one matrix [query frame, key frame]; `masks.py` turns
it into the form a kernel takes, and the kernel is chosen here:

    dense   scaled_dot_product_attention; with an additive mask where frames are hidden
    merged  library kernels without a mask, merged by log-sum-exp (`merged_attention.py`)
    flex    FlexAttention, compiled, where frames are hidden: skips tiles that are hidden entirely
    flash   flash-attn, without a mask, or where only the end of the keys is hidden; never required

`auto` is dense on a CPU. On CUDA it is merged in half precision, which was fastest on an H100
(docs/wan.md; the bench's rows `attention/*` measure it); in float32, which those kernels do not
take, dense for masks of up to `SMALL` bytes, else flex. `measured` times, once for each mask
without a KV cache, those that could be used (`attention_probe.py`), and is `auto` where no frame is
hidden, and beside a cache, where every length would be another mask. Results do not depend on the
choice but for rounding; a dense mask that is too large is refused (`masks.DENSE_LIMIT`).

Where numbers carry a forward derivative (dual numbers, `diffusion/tangents.py`), none of these
kernels has one, and `tangent_attention.py` takes their place, whatever was chosen.
"""

import logging
from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from lightning_modules.networks.wan import merged_attention, tangent_attention
from lightning_modules.networks.wan.attention_probe import fastest, random_parts, run_twice
from lightning_modules.networks.wan.checkpointing import recomputes
from lightning_modules.networks.wan.flash_kernel import flash_kernel, flash_missing
from lightning_modules.networks.wan.flex_kernel import flex_kernel
from lightning_modules.networks.wan.masks import (
    DENSE_LIMIT,
    FrameMask,
    Prefixes,
    Rows,
    block_mask,
    dense_bytes,
    dense_mask,
    hidden_rows,
    prefixes,
)
from lightning_modules.networks.wan.rectangles import Rectangle, Rectangles, rectangles
from lightning_modules.ranges import Checkpointing

log = logging.getLogger(__name__)
Backend = Literal["auto", "measured", "dense", "merged", "flex", "flash"]
HALF = (torch.bfloat16, torch.float16)
SMALL = 2**25
"""Bytes of a dense mask up to which compiling FlexAttention is not worth its while."""

Mask = Tensor | Prefixes | Rectangles | FrameMask | object | None
"""A dense mask, prefixes, rectangles, the frames themselves for a tangent, or FlexAttention's
BlockMask, which is imported only where it is used."""

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
    if backend in ("flex", "flash", "measured") and device.type != "cuda":
        reason = {
            "measured": "a run on a CPU repeats itself bit for bit, whatever it was timed at",
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
    _log_once.cache_clear()
    _fastest.cache_clear()


def chosen() -> Backend:
    """The kernel that `use` was told."""
    return _forced


def choose(device: torch.device, half: bool, small: bool, prefixed: bool) -> str:
    """The kernel for frames of which some are hidden: `dense`, `merged`, `flex` or `flash`.

    Raises:
        ValueError: if flash-attn is forced on a matrix that hides more than the end of the keys.
    """
    if _forced == "flash" and not prefixed:
        raise ValueError(
            "launch.attention: flash-attn takes no mask, and this pass hides frames between others"
            " (teacher forcing does); use auto, merged or flex"
        )
    if _forced not in ("auto", "measured"):
        return _forced
    if device.type != "cuda":
        return "dense"
    if half:
        return "merged"
    return "dense" if small else "flex"


def attention_mask(
    visible: Tensor | None,
    tokens: int,
    cached: int,
    device: torch.device,
    dtype: torch.dtype,
    first: int = 0,
    heads: tuple[int, int] = (12, 128),
    checkpointing: Checkpointing = False,
) -> Mask:
    """The mask of a call for `attend`: a frame matrix expanded to tokens, in the kernel's form.

    Args:
        visible: [N, N] bool, row = query frame; None: all see all.
        tokens: tokens per frame.
        cached: frames at the front of the keys that come from the KV cache, seen by all.
        device: where the mask will be used.
        dtype: of a dense mask.
        first: query frame; those before it have no rows.
        heads: how many, and channels of one, as kernels are timed; Wan2.1-1.3B's.
        checkpointing: of the layers, which run some kernels twice where there is a gradient.

    Returns:
        The mask [(N - first) * tokens, (cached + N) * tokens]; None if nothing is hidden.
        Equal calls share one object: do not write to it. Within a dual level it is of frames.

    Raises:
        ValueError: if `visible` is not a square bool matrix, a frame would see nothing, a dense
            mask would be too large, or the forced kernel cannot hide what is hidden.
    """
    rows = hidden_rows(visible, cached, first)
    if rows is None:
        return None
    if _dual_level_is_open():
        return FrameMask(rows, tokens, cached)
    pieces = prefixes(rows, tokens, cached)
    small = dense_bytes(rows, tokens, cached, dtype) <= SMALL
    if _forced == "measured" and not cached and not _capturing(device):
        again = torch.is_grad_enabled() and checkpointing
        kernel = _fastest(rows, tokens, device, dtype, heads, torch.is_grad_enabled(), again)
    else:
        kernel = choose(device, dtype in HALF, small, pieces is not None)
        _log_once(f"{kernel} where frames are hidden", device.type)
    if kernel == "flash":
        return pieces
    return _form(kernel, rows, tokens, cached, device, dtype)


def _form(
    kernel: str, rows: Rows, tokens: int, cached: int, device: torch.device, dtype: torch.dtype
) -> Mask:
    """The mask as a kernel takes it."""
    if kernel == "merged":
        return rectangles(rows, tokens, cached)
    if kernel == "flex":
        return block_mask(rows, tokens, cached, device)
    return dense_mask(rows, tokens, cached, device, dtype)


@lru_cache(maxsize=64)
def _fastest(
    rows: Rows,
    tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    heads: tuple[int, int],
    gradient: bool,
    checkpointing: Checkpointing = False,
) -> str:
    """The kernel that is fastest for these frames, of those that are there."""
    there = ["merged"] if dtype in HALF or device.type != "cuda" else []
    there += ["flex"] if device.type == "cuda" else []
    there += ["dense"] if dense_bytes(rows, tokens, 0, dtype) <= DENSE_LIMIT else []

    def made(name: str) -> Callable[..., Tensor]:
        form = dense_mask.__wrapped__ if name == "dense" else partial(_form, name)  # not kept
        kernel = partial(attend, mask=form(rows, tokens, 0, device, dtype))
        return run_twice(kernel) if recomputes(name, checkpointing) else kernel

    kernels = {name: partial(made, name) for name in there}
    lengths = len(rows) * tokens, len(rows[0]) * tokens
    return fastest(kernels, *random_parts(*lengths, heads, device, dtype, gradient))


def _capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being recorded, which nothing may interrupt."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None) -> Tensor:
    """Softmax attention.

    Args:
        q: queries [B, T, heads, head_dim].
        k: keys [B, K, heads, head_dim].
        v: values, as `k`.
        mask: from `attention_mask`; None: all see all.

    Returns:
        [B, T, heads * head_dim].
    """
    if isinstance(mask, FrameMask) or (mask is None and _has_tangent(q, k, v)):
        out = tangent_attention.attend(q, k, v, mask)
    elif mask is None:
        out = _full_attention(q, k, v)
    elif isinstance(mask, Tensor):
        out = _dense(q, k, v, mask)
    elif isinstance(mask, tuple) and isinstance(mask[0], Rectangle):
        _check_dtype(q)
        out = merged_attention.attend(q, k, v, mask)
    elif isinstance(mask, tuple):
        out = _by_prefix(q, k, v, mask)
    else:
        out = _flex(q, k, v, mask)
    return out.flatten(2)


def _dual_level_is_open() -> bool:
    """Torch has no public way to ask without a tensor."""
    return forward_ad._current_level >= 0


def _has_tangent(*parts: Tensor) -> bool:
    return _dual_level_is_open() and any(
        forward_ad.unpack_dual(part).tangent is not None for part in parts
    )


def _dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
    )
    return out.transpose(1, 2)


def _full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Without a mask the memory of every kernel is linear in the tokens."""
    kernel = _unmasked(q)
    _log_once(f"{kernel} where none is hidden", q.device.type)
    if kernel == "flash":
        return flash_kernel()(q, k, v)
    return merged_attention.attend(q, k, v) if kernel == "merged" else _dense(q, k, v)


def _unmasked(q: Tensor) -> str:
    """The kernel where no frame is hidden."""
    _check_dtype(q)
    if _forced in ("flash", "merged"):
        return _forced
    automatic = _forced in ("auto", "measured") and q.dtype in HALF and q.device.type == "cuda"
    # With gradient there are many queries: nothing to gain over torch's own choice.
    return "merged" if automatic and not torch.is_grad_enabled() else "dense"


def _check_dtype(q: Tensor) -> None:
    half_only = _forced == "flash" or (_forced == "merged" and q.device.type == "cuda")
    if half_only and q.dtype not in HALF:
        raise ValueError(
            f"launch.attention: {_forced} computes in bfloat16 or float16, the queries are"
            f" {q.dtype}: set a bf16 precision, or use auto"
        )


def _by_prefix(q: Tensor, k: Tensor, v: Tensor, pieces: Prefixes) -> Tensor:
    starts = (0, *(end for end, _ in pieces))
    return torch.cat(
        [
            _full_attention(q[:, start:end], k[:, :seen], v[:, :seen])
            for start, (end, seen) in zip(starts, pieces, strict=False)
        ],
        dim=1,
    )


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: object) -> Tensor:
    kernel = flex_kernel(q.device.type)
    parts = (part.transpose(1, 2) for part in (q, k, v))
    return kernel(*parts, block_mask=mask).transpose(1, 2)


@cache
def _log_once(what: str, device_type: str) -> None:
    """Once per run (`use` starts one)."""
    log.info("attention: %s (%s)", what, device_type)
