"""The tangent of masked attention in Triton; the formula is in `tangent_attention.py`.

One program takes `TILE` queries of one head through the tiles of keys that they see, which
`masks.block_mask` lists in ascending order by 128 x 128: those seen in part, of which every pair is
looked up in the frame table, then those seen entirely. Of each list the tiles of leading keys
without a tangent come first and take three products, the rest five. Sums are float32; for half
precision, p and the weights are rounded before their products.

Written for the tensor cores of an H100 (heads of 128 channels in bfloat16), run in Triton's
interpreter and compiled for sm_90 by the tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_modules.networks.wan import masks
from lightning_modules.networks.wan.masks import FrameMask, block_mask, frame_table
from lightning_modules.networks.wan.tangent_attention import first_moving

TILE = {torch.bfloat16: 64, torch.float16: 64, torch.float32: 16}
"""Queries of a program, and keys of a step: what the shared memory of an SM holds."""
STAGES = {torch.bfloat16: 2, torch.float16: 2, torch.float32: 1}
WARPS = {torch.bfloat16: 4, torch.float16: 4, torch.float32: 8}
"""As many as leave the least to spill from registers, compiled for sm_90."""
LOG2E = tl.constexpr(1.4426950408889634)
ENTIRE = tl.constexpr(0)
"""Of a tile's pairs, all are seen."""
EDGE = tl.constexpr(1)
"""Of a tile's pairs, those are seen whose key exists."""
PARTLY = tl.constexpr(2)
"""Of a tile's pairs, the frame table says which are seen."""


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
    """The tangent of `out`, all as in `tangent_attention.tangent`.

    Raises:
        ValueError: float64, which the products of this kernel do not take.
    """
    if q.dtype not in TILE:
        raise ValueError(f"attention's tangent on CUDA takes no {q.dtype}: use 32-true or bf16")
    keys_move = k_dot is not None or v_dot is not None
    moves = (first_moving(q.shape[1], q_dot), first_moving(k.shape[1], k_dot, v_dot))
    moves = torch.stack([first.to(q.device, non_blocking=True) for first in moves]).int()
    parts = [q, k, v, out, _or_zeros(q_dot, q)]
    parts += [_or_zeros(k_dot, k), _or_zeros(v_dot, v)] if keys_move else [k, v]
    parts = [part.contiguous() for part in parts]
    result = torch.empty_like(parts[0])
    batch, queries, heads, channels = q.shape
    tile = TILE[q.dtype]
    precise = torch.get_float32_matmul_precision() == "highest"  # as FlexAttention does
    _tangent[triton.cdiv(queries, tile), batch * heads](
        *parts,
        lse.contiguous(),
        result,
        moves,
        *_lists(mask, q.device),
        queries,
        k.shape[1],
        heads,
        channels**-0.5,
        CHANNELS=channels,
        WIDTH=max(16, triton.next_power_of_2(channels)),
        TILE=tile,
        BLOCK=masks.TILE,
        BLOCKS=triton.next_power_of_2(triton.cdiv(k.shape[1], masks.TILE)),
        MASKED=mask is not None,
        KEYS_MOVE=keys_move,
        PRECISION="ieee" if precise else "tf32",
        num_warps=WARPS[q.dtype],
        num_stages=STAGES[q.dtype],
    )
    return result


def _or_zeros(dot: Tensor | None, part: Tensor) -> Tensor:
    return torch.zeros_like(part) if dot is None else dot


def _lists(mask: FrameMask | None, device: torch.device) -> tuple[Tensor | int | None, ...]:
    """How many tiles each 128 queries see in part and which, as many of whole ones, the table of
    frames and its width, and tokens per frame.
    """
    if mask is None:
        return None, None, None, None, None, 0, 0
    tiles = block_mask(mask.rows, mask.tokens, mask.cached, device)
    listed = (tiles.kv_num_blocks, tiles.kv_indices, tiles.full_kv_num_blocks)
    table = frame_table(mask.rows, mask.cached, device)
    return *listed, tiles.full_kv_indices, table.view(torch.uint8), table.shape[1], mask.tokens


@triton.jit
def _step(
    q, q_dot, level, rows, result, total, k, v, k_dot, v_dot, head_at, heads, first, keys, queries,
    table, frames, tokens, scale,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, SEEN: tl.constexpr,
    MOVES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys from token `first` on, added to `result` [TILE, WIDTH] and `total`."""
    columns = first + tl.arange(0, TILE)
    channels = tl.arange(0, WIDTH)
    at = head_at + columns[:, None].to(tl.int64) * heads * CHANNELS + channels[None, :]
    inside = (columns[:, None] < keys) & (channels[None, :] < CHANNELS)
    keys_tile = tl.load(k + at, mask=inside, other=0.0)
    values_tile = tl.load(v + at, mask=inside, other=0.0)
    scores = tl.dot(q, tl.trans(keys_tile), input_precision=PRECISION)
    p = tl.exp2(scores * (scale * LOG2E) - level[:, None])
    if SEEN == EDGE:
        p = tl.where((columns < keys)[None, :], p, 0.0)
    if SEEN == PARTLY:
        exist = (rows < queries)[:, None] & (columns < keys)[None, :]
        pair = (rows // tokens)[:, None] * frames + (columns // tokens)[None, :]
        seen = tl.load(table + pair, mask=exist, other=0) != 0
        p = tl.where(seen, p, 0.0)
    change = tl.dot(q_dot, tl.trans(keys_tile), input_precision=PRECISION)
    if MOVES:
        keys_dot = tl.load(k_dot + at, mask=inside, other=0.0)
        change = tl.dot(q, tl.trans(keys_dot), change, input_precision=PRECISION)
        values_dot = tl.load(v_dot + at, mask=inside, other=0.0)
        result = tl.dot(p.to(values_dot.dtype), values_dot, result, input_precision=PRECISION)
    # The sum is of the rounded weights: rounding then errs by their share of v - o, not of v.
    weights = (p * change * scale).to(values_tile.dtype)
    result = tl.dot(weights, values_tile, result, input_precision=PRECISION)
    return result, total + tl.sum(weights.to(tl.float32), 1)


@triton.jit
def _through(
    q, q_dot, level, rows, result, total, k, v, k_dot, v_dot, head_at, heads, count, listed,
    moving_block, queries_still, keys, queries, table, frames, tokens, scale,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr, SEEN: tl.constexpr, KEYS_MOVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Steps through `count` blocks of keys: the `listed` ones, or all up to an EDGE."""
    SPLIT: tl.constexpr = BLOCK // TILE
    if not KEYS_MOVE:
        still = count  # the last block too, which keys may not fill
    elif SEEN == EDGE:
        still = tl.minimum(count, moving_block)
    else:
        places = tl.arange(0, BLOCKS)
        blocks = tl.load(listed + places, mask=places < count, other=BLOCKS)
        still = tl.sum((blocks < moving_block).to(tl.int32), 0)
    for step in range(tl.where(queries_still, still, 0) * SPLIT, still * SPLIT):
        block = step // SPLIT
        if SEEN != EDGE:
            block = tl.load(listed + block)
        result, total = _step(
            q, q_dot, level, rows, result, total, k, v, k_dot, v_dot, head_at, heads,
            block * BLOCK + step % SPLIT * TILE, keys, queries, table, frames, tokens, scale,
            CHANNELS, WIDTH, TILE, SEEN, False, PRECISION,
        )  # fmt: skip
    if KEYS_MOVE:
        for step in range(still * SPLIT, count * SPLIT):
            block = step // SPLIT
            if SEEN != EDGE:
                block = tl.load(listed + block)
            result, total = _step(
                q, q_dot, level, rows, result, total, k, v, k_dot, v_dot, head_at, heads,
                block * BLOCK + step % SPLIT * TILE, keys, queries, table, frames, tokens, scale,
                CHANNELS, WIDTH, TILE, SEEN, True, PRECISION,
            )  # fmt: skip
    return result, total


@triton.jit
def _tangent(
    q, k, v, out, q_dot, k_dot, v_dot, lse, result, moves,
    partly_count, partly, entire_count, entire, table, frames, tokens,
    queries, keys, heads, scale,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr, MASKED: tl.constexpr, KEYS_MOVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Tensors [batch, tokens, heads, CHANNELS], contiguous; `lse` [batch, heads, queries]."""
    begin = tl.program_id(0) * TILE
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    rows = begin + tl.arange(0, TILE)
    channels = tl.arange(0, WIDTH)
    at = (batch * queries + rows[:, None]) * heads * CHANNELS + head * CHANNELS + channels[None, :]
    inside = (rows[:, None] < queries) & (channels[None, :] < CHANNELS)
    q_tile = tl.load(q + at, mask=inside, other=0.0)
    q_dot_tile = tl.load(q_dot + at, mask=inside, other=0.0)
    # exp(s - inf) = 0 for rows that are not there.
    level_at = tl.program_id(1).to(tl.int64) * queries + rows
    level = tl.load(lse + level_at, mask=rows < queries, other=float("inf")) * LOG2E
    head_at = batch * keys * heads * CHANNELS + head * CHANNELS
    moving_block = tl.load(moves + 1) // BLOCK  # all blocks before it stand still
    queries_still = begin + TILE <= tl.load(moves)
    width = tl.cdiv(keys, BLOCK)

    total = tl.zeros([TILE], tl.float32)
    sums = tl.zeros([TILE, WIDTH], tl.float32)
    if MASKED:
        list_at = begin // BLOCK
        sums, total = _through(
            q_tile, q_dot_tile, level, rows, sums, total, k, v, k_dot, v_dot, head_at, heads,
            tl.load(partly_count + list_at), partly + list_at * width, moving_block,
            queries_still, keys, queries, table, frames, tokens, scale,
            CHANNELS, WIDTH, TILE, BLOCK, BLOCKS, PARTLY, KEYS_MOVE, PRECISION,
        )  # fmt: skip
        sums, total = _through(
            q_tile, q_dot_tile, level, rows, sums, total, k, v, k_dot, v_dot, head_at, heads,
            tl.load(entire_count + list_at), entire + list_at * width, moving_block,
            queries_still, keys, queries, table, frames, tokens, scale,
            CHANNELS, WIDTH, TILE, BLOCK, BLOCKS, ENTIRE, KEYS_MOVE, PRECISION,
        )  # fmt: skip
    else:
        sums, total = _through(
            q_tile, q_dot_tile, level, rows, sums, total, k, v, k_dot, v_dot, head_at, heads,
            width, None, moving_block, queries_still, keys, queries, table, frames, tokens, scale,
            CHANNELS, WIDTH, TILE, BLOCK, BLOCKS, EDGE, KEYS_MOVE, PRECISION,
        )  # fmt: skip
    sums -= total[:, None] * tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(result + at, sums.to(result.dtype.element_ty), mask=inside)
