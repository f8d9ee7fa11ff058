"""Attention without a mask in rectangles of queries and keys, merged by log-sum-exp.

For keys in disjoint parts i, of which a kernel gives `out_i` and `lse_i = log sum_j exp(q k_j)`:

    lse = log sum_i exp(lse_i)            out = sum_i exp(lse_i - lse) out_i

Backward, a part's kernel that is given the merged `out` and `lse` in place of its own returns that
part's share of the gradients, since it computes p = exp(q k - lse) and ds = p (dp - sum(out dout)).
So a library's fastest kernel attends under any mask of frames, exactly; and a call with few queries
fills the device when its keys are split.

Shapes: q [B, T, H, E]; k and v [B, K, H, E]; out as q; lse [B, H, T], float32 (float64 for
that).

Sources: Ring Attention (arXiv 2310.01889); FlashAttention-2 (arXiv 2307.08691, sec. 3.1).
"""

from collections.abc import Callable, Sequence
from functools import cache, reduce
from itertools import pairwise
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.networks.wan.compiled import compiled
from lightning_modules.networks.wan.rectangles import (
    QUERY_TILE,
    Rectangle,
    Rectangles,
    best_parts,
    edges,
)

aten = torch.ops.aten
Attended = tuple[Tensor, Tensor]  # out and lse


def attend(q: Tensor, k: Tensor, v: Tensor, parts: Rectangles | None = None) -> Tensor:
    """Softmax attention of queries to the keys of their rectangles; None: of all to all.

    Every query is in a rectangle, and none of them overlap.
    """
    parts = parts or (Rectangle((0, q.shape[1]), (0, k.shape[1])),)
    size, wanted = q.shape[-1], _channels(q)
    if wanted == size:
        return _Merged.apply(q, k, v, parts)
    q = q * (wanted / size) ** 0.5  # kernels divide by the root of the channels that they see
    padded = (F.pad(each, (0, wanted - size)) for each in (q, k, v))
    return _Merged.apply(*padded, parts)[..., :size]


def _channels(q: Tensor) -> int:
    """Of a head, as the kernels of a GPU take them: multiples of eight."""
    return q.shape[-1] if q.device.type != "cuda" else 8 * ceil(q.shape[-1] / 8)


def library(device: torch.device) -> str:
    """Whose kernels are used: on Hopper cuDNN's, which took half of flash-attention 2's time."""
    if device.type != "cuda":
        return "cpu"
    hopper = torch.cuda.get_device_capability(device) >= (9, 0)
    return "cudnn" if hopper and torch.backends.cuda.cudnn_sdp_enabled() else "flash"


@torch.library.custom_op("wan::merged_attention", mutates_args=())
def merged_attention(
    q: Tensor, k: Tensor, v: Tensor, rectangles: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Out and lse. One operation, so that checkpointing can keep its results (`checkpointing.py`).

    ``rectangles`` are first and last query, first and last key of one after the other.
    """
    edge = iter(rectangles)
    parts = tuple(
        Rectangle((a, b), (c, d)) for a, b, c, d in zip(edge, edge, edge, edge, strict=True)
    )
    done = [(part, _attended(*_cut(part, q, k, v))) for part in parts]
    if len(done) == 1 and len(done[0][1]) == 1:
        return done[0][1][0]
    out, lse = torch.empty_like(q), done[0][1][0][1].new_empty(_heads(q).shape[:3])
    for start, stop in pairwise(edges(parts)):
        seen = [each for each in done if each[0].queries[0] <= start < each[0].queries[1]]
        pieces = _pieces(seen, start, stop)
        _merge_clips(out[:, start:stop], lse[:, :, start:stop], *pieces)
    return out, lse


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, q: Tensor, k: Tensor, v: Tensor, parts: Rectangles) -> Tensor:
        edges_of_all = [edge for part in parts for edge in (*part.queries, *part.keys)]
        out, lse = merged_attention(q, k, v, edges_of_all)
        context.save_for_backward(q, k, v, out, lse)
        context.parts = parts
        return out

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, lse = context.saved_tensors
        full = torch.promote_types(q.dtype, torch.float32)
        sums = [torch.zeros_like(each, dtype=full) for each in (q, k, v)]
        for part in context.parts:
            queries, keys = slice(*part.queries), slice(*part.keys)
            of_queries = grad[:, queries], out[:, queries], lse[:, :, queries].contiguous()
            found = _gradients(q.device)(*of_queries, *_cut(part, q, k, v))
            for total, where, each in zip(sums, (queries, keys, keys), found, strict=True):
                total[:, where] += each
        return *(total.type_as(q) for total in sums), None


def _cut(part: Rectangle, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    keys = slice(*part.keys)
    return q[:, slice(*part.queries)], k[:, keys], v[:, keys]


def parts_to_fill(q: Tensor, keys: int) -> int:
    """In how many parts one call attends to `keys`, so that it fills the device.

    A batch of several clips fills it better, and would have to be copied.
    """
    if q.device.type != "cuda" or len(q) > 1:
        return 1
    tiles = q.shape[2] * ceil(q.shape[1] / QUERY_TILE)
    return best_parts(tiles, keys, _multiprocessors(q.device))


def _attended(q: Tensor, k: Tensor, v: Tensor) -> list[Attended]:
    """One call, with the parts of its keys, if any, as the clips of a batch."""
    parts = parts_to_fill(q, k.shape[1])
    if parts == 1:
        return [_kernel(q.device)(q, k, v)]
    split = (each.unflatten(1, (parts, -1)).squeeze(0) for each in (k, v))
    out, lse = _kernel(q.device)(q.expand(parts, -1, -1, -1), *split)
    return list(zip(out.split(1), lse.split(1), strict=True))


def _pieces(
    seen: list[tuple[Rectangle, list[Attended]]], start: int, stop: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Of queries `start` to `stop`: outs and lses of each part of their keys."""
    outs, lses = [], []
    for part, found in seen:
        here = slice(start - part.queries[0], stop - part.queries[0])
        outs += [out[:, here] for out, _ in found]
        lses += [lse[:, :, here] for _, lse in found]
    return outs, lses


def _merge_clips(out: Tensor, lse: Tensor, outs: list[Tensor], lses: list[Tensor]) -> None:
    """`_merge` of every clip, so that the compiler sees the same strides in every rectangle."""
    merge = _compiled_merge() if out.device.type == "cuda" else _merge
    for clip in range(len(out)):
        merge(
            out[clip],
            lse[clip],
            [each[clip] for each in outs],
            [each[clip].contiguous() for each in lses],
        )


def _merge(out: Tensor, lse: Tensor, outs: list[Tensor], lses: list[Tensor]) -> None:
    """Write `out` [T, H, E] and `lse` [H, T] of the parts': element by element, so one kernel."""
    largest = reduce(torch.maximum, lses)
    weights = [(each - largest).exp() for each in lses]
    total = sum(weights)
    lse.copy_(largest + total.log())
    shares = ((each / total).transpose(0, 1)[..., None] for each in weights)
    out.copy_(sum(each * share for each, share in zip(outs, shares, strict=True)))


@cache
def _compiled_merge() -> Callable[..., None]:
    """One kernel in place of eight."""
    return compiled(_merge)


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


# -- kernels: torch's take [B, H, T, E] -----------------------------------------------------------


@cache
def _kernel(device: torch.device) -> Callable[..., Attended]:
    """(q, k, v) -> (out, lse)."""
    return {"cpu": _cpu, "cudnn": _cudnn, "flash": _flash}[library(device)]


@cache
def _gradients(device: torch.device) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """(grad, out, lse, q, k, v) -> gradients of q, k, v."""
    known = {"cpu": _cpu_gradients, "cudnn": _cudnn_gradients, "flash": _flash_gradients}
    return known[library(device)]


def _cpu(q: Tensor, k: Tensor, v: Tensor) -> Attended:
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(*map(_heads, (q, k, v)))
    return _heads(out), lse


def _cpu_gradients(grad: Tensor, out: Tensor, lse: Tensor, *qkv: Tensor) -> tuple[Tensor, ...]:
    run = aten._scaled_dot_product_flash_attention_for_cpu_backward
    grads = run(_heads(grad), *map(_heads, qkv), _heads(out), lse, 0.0, False)
    return tuple(map(_heads, grads))


def _cudnn(q: Tensor, k: Tensor, v: Tensor) -> Attended:
    run = aten._scaled_dot_product_cudnn_attention
    out, lse, *_ = run(*map(_heads, (q, k, v)), None, True)
    return _heads(out), lse.flatten(2)


def _cudnn_gradients(grad: Tensor, out: Tensor, lse: Tensor, *qkv: Tensor) -> tuple[Tensor, ...]:
    q, k, v = map(_heads, qkv)
    no_seed = torch.empty(0, dtype=torch.int64, device=q.device)
    lengths = (None, None, q.shape[2], k.shape[2])
    run = aten._scaled_dot_product_cudnn_attention_backward
    grads = run(
        *(_heads(grad), q, k, v, _heads(out), lse[..., None], no_seed, no_seed, None),
        *(*lengths, 0.0, False),
    )
    return tuple(map(_heads, grads))


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Attended:
    out, lse, *_ = aten._scaled_dot_product_flash_attention(*map(_heads, (q, k, v)))
    return _heads(out), lse


def _flash_gradients(grad: Tensor, out: Tensor, lse: Tensor, *qkv: Tensor) -> tuple[Tensor, ...]:
    q, k, v = map(_heads, qkv)
    no_seed = torch.zeros(2, dtype=torch.uint64, device=q.device)
    lengths = (None, None, q.shape[2], k.shape[2])
    run = aten._scaled_dot_product_flash_attention_backward
    grads = run(
        *(_heads(grad), q, k, v, _heads(out), lse),
        *(*lengths, 0.0, False, no_seed, no_seed[0]),
    )
    return tuple(map(_heads, grads))


def _heads(each: Tensor) -> Tensor:
    """[B, T, H, E] to [B, H, T, E], and back."""
    return each.transpose(1, 2)
