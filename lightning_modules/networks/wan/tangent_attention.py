"""Attention of dual numbers: the output, and its change along tangents of q, k and v.

With p = softmax(scale q k' + mask), o = p v, and a dot for a tangent,

    s. = scale (q. k' + q k.')      o. = p v. + (p * s.) v - rowsum(p * s.) o

(Causal-rCM, arXiv 2606.25473, Eq. 43-45). Given the logarithm `lse` of each row's sum of
exponentials, p = exp(s - lse) of one tile of keys needs no other tile, so nothing that grows with
the square of the tokens is kept:

    CPU     per run of query frames that see the same keys (`FrameMask.runs`), gathered:
            the output by torch's flash kernel for CPUs, the tangent by a loop over tiles of keys
    CUDA    the output by FlexAttention, the tangent by one Triton kernel (`tangent_kernel.py`)

Leading keys without a tangent, the clean past of teacher forcing, take three products a tile in
place of five, and leading queries without one that see only such keys take none.

Dual numbers need `jvp` beside `forward`, and `save_for_forward` for what it reads. `torch.func`
asks for `setup_context` as well, which is not given: `forward` would have to return `lse`, too.
There is no `backward`: a tangent is taken without gradient.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor

from lightning_modules.networks.wan.flex_kernel import flex_kernel
from lightning_modules.networks.wan.masks import FrameMask, block_mask

KEYS = 128
"""Keys of a tile on a CPU: scores then take no more than an output of 128 channels per head."""


def missing(device_type: str) -> str | None:
    """Why attention has no tangent on this device; None if it has."""
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        return "attention's tangent on CUDA needs Triton, which is not installed"
    return None


def attend(q: Tensor, k: Tensor, v: Tensor, mask: FrameMask | None) -> Tensor:
    """Softmax attention with a forward derivative, and without gradient.

    Args:
        q: queries [B, T, H, E], dual numbers or not, as are keys and values.
        k: keys [B, K, H, E].
        v: values, as `k`; all three of one dtype, float64, float32, bfloat16 or float16.
        mask: of T and K tokens; None: all see all.

    Returns:
        [B, T, H, E] of that dtype. Tangents are summed in float32, or float64 of float64.
    """
    return _Attention.apply(q, k, v, mask)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, q: Tensor, k: Tensor, v: Tensor, mask: FrameMask | None) -> Tensor:
        output = by_flex if q.device.type == "cuda" else by_runs
        out, lse = output(q, k, v, mask)
        context.set_materialize_grads(False)  # a tangent that is absent saves work
        context.save_for_forward(q, k, v, out, lse)
        context.mask = mask
        return out

    @staticmethod
    def jvp(
        context: Any, q_dot: Tensor | None, k_dot: Tensor | None, v_dot: Tensor | None, _: None
    ) -> Tensor:
        saved, dots = context.saved_tensors, (q_dot, k_dot, v_dot)
        device = saved[0].device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            if device == "cuda":
                from lightning_modules.networks.wan import tangent_kernel

                return tangent_kernel.tangent(*saved, *dots, context.mask)
            return tangent(*saved, *dots, context.mask)


def by_flex(q: Tensor, k: Tensor, v: Tensor, mask: FrameMask | None) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, E] and `lse` [B, H, T] float32, by FlexAttention."""
    from torch.nn.attention.flex_attention import AuxRequest

    tiles = mask and block_mask(mask.rows, mask.tokens, mask.cached, q.device)
    out, more = flex_kernel(q.device.type)(
        *_heads_first(q, k, v), block_mask=tiles, return_aux=AuxRequest(lse=True)
    )
    return out.transpose(1, 2), more.lse


def by_runs(q: Tensor, k: Tensor, v: Tensor, mask: FrameMask | None) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, E] and `lse` [B, H, T], float32 or float64, by flash attention for CPUs."""
    kernel, outs, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, [], []
    for rows, spans in _runs(mask, q, k):
        out, lse = kernel(*_heads_first(q[:, rows], _gather(k, spans), _gather(v, spans)))
        outs.append(out.transpose(1, 2))
        sums.append(lse)
    return torch.cat(outs, 1), torch.cat(sums, 2)


def tangent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    q_dot: Tensor | None,
    k_dot: Tensor | None,
    v_dot: Tensor | None,
    mask: FrameMask | None,
) -> Tensor:
    """The tangent [B, T, H, E] of `out`, by a plain loop; tangents are as what they belong to."""
    queries_from = int(first_moving(q.shape[1], q_dot))
    keys_from = int(first_moving(k.shape[1], k_dot, v_dot))
    result = torch.zeros_like(out)
    for rows, spans in _runs(mask, q, k):
        still = sum(max(0, min(span.stop, keys_from) - span.start) for span in spans)
        if rows.stop <= queries_from and still == sum(s.stop - s.start for s in spans):
            continue
        moving = [
            None if part is None else _gather(part, spans).transpose(1, 2)
            for part in (k_dot, v_dot)
        ]
        q_dot_rows = None if q_dot is None else q_dot[:, rows].transpose(1, 2)
        fixed = _heads_first(q[:, rows], _gather(k, spans), _gather(v, spans), out[:, rows])
        found = _by_tiles(*fixed, lse[:, :, rows], q_dot_rows, *moving, still)
        result[:, rows] = found.transpose(1, 2).to(result.dtype)
    return result


def first_moving(length: int, *dots: Tensor | None) -> Tensor:
    """The first of `length` tokens at which a tangent [B, length, H, E] is not zero; `length` if
    none is. An int64 scalar on the tangents' device: no device is waited for.
    """
    dots = [dot for dot in dots if dot is not None]
    if not dots:
        return torch.tensor(length)
    # The largest magnitude, not `any`, which would first make a bool of every number. A NaN moves.
    sizes = [torch.linalg.vector_norm(dot, torch.inf, dim=(0, 2, 3)) for dot in dots]
    moves = torch.stack(sizes).ne(0).any(0)
    places = torch.arange(length, device=moves.device)
    return torch.where(moves, places, length).amin()


def _by_tiles(
    q: Tensor,  # [B, H, T, E], as all tensors that follow but `lse` [B, H, T]
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    q_dot: Tensor | None,
    k_dot: Tensor | None,
    v_dot: Tensor | None,
    still: int,  # keys at the front that have no tangent
) -> Tensor:
    q, out, lse = (part.to(lse.dtype) for part in (q, out, lse))
    scale, result, total = q.shape[-1] ** -0.5, torch.zeros_like(q), torch.zeros_like(lse)
    q = scale * q
    q_dot = None if q_dot is None else scale * q_dot.to(lse.dtype)
    for start in range(0, k.shape[2], KEYS):
        tile = slice(start, start + KEYS)
        moves = start + KEYS > still
        keys = k[:, :, tile].to(lse.dtype)
        p = (q @ keys.mT - lse[..., None]).exp_()
        weights = torch.zeros_like(p) if q_dot is None else q_dot @ keys.mT
        if moves and k_dot is not None:
            weights += q @ k_dot[:, :, tile].to(lse.dtype).mT
        weights *= p
        result += weights @ v[:, :, tile].to(lse.dtype)
        if moves and v_dot is not None:
            result += p @ v_dot[:, :, tile].to(lse.dtype)
        total += weights.sum(-1)
    return result - total[..., None] * out


def _runs(mask: FrameMask | None, q: Tensor, k: Tensor) -> list[tuple[slice, list[slice]]]:
    if mask is None:
        return [(slice(0, q.shape[1]), [slice(0, k.shape[1])])]
    return mask.runs()


def _gather(part: Tensor, spans: list[slice]) -> Tensor:
    """Tokens `spans` of [B, K, H, E]; a view where they are one span."""
    pieces = [part[:, span] for span in spans]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)


def _heads_first(*parts: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.transpose(1, 2) for part in parts)
