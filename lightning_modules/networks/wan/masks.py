"""One frame-level mask [query frame, key frame], in the forms that attention kernels take.

Every mask of this project is constant within a frame; the others are made from that matrix, once,
and shared by equal calls:

    dense mask   [T, K] additive floats, for SDPA; grows with the square of the tokens
    block mask   which tiles of 128 x 128 tokens are fully, partly or not visible (FlexAttention)
    prefixes     if each frame sees a prefix of the keys: unmasked attention calls per prefix
    frame mask   the matrix itself, for attention with a tangent (tangent_attention.py)

`cached` frames at the front of the keys are seen by every query frame. Rows are tuples of bools,
because they are keys of small caches.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Rows = tuple[tuple[bool, ...], ...]
Prefixes = tuple[tuple[int, int], ...]

TILE = 128
"""Tokens of a side of FlexAttention's tiles: its default, for which its kernels are tuned."""
DENSE_LIMIT = 2**30
"""Bytes above which a dense mask is refused: 65,520 tokens of bfloat16 would take 8 GiB."""


@dataclass(frozen=True)
class FrameMask:
    """Which frame sees which: `rows` of query frames, `tokens` per frame, `cached` frames first."""

    rows: Rows
    tokens: int
    cached: int

    def runs(self) -> list[tuple[slice, list[slice]]]:
        """Neighbouring query frames that see the same keys: their tokens, and spans of the keys'.

        The spans ascend and do not touch.
        """
        found, start = [], 0
        for row, frames in groupby(self.rows):
            stop = start + len(list(frames))
            found.append((self._tokens(start, stop), self._spans(row)))
            start = stop
        return found

    def _spans(self, row: tuple[bool, ...]) -> list[slice]:
        spans, start = [], 0
        for seen, frames in groupby((True,) * self.cached + row):
            stop = start + len(list(frames))
            if seen:
                spans.append(self._tokens(start, stop))
            start = stop
        return spans

    def _tokens(self, start: int, stop: int) -> slice:
        return slice(start * self.tokens, stop * self.tokens)


def hidden_rows(visible: Tensor | None, cached: int, first: int = 0) -> Rows | None:
    """The rows of `visible` [N, N] bool (row = query frame), or None when nothing is hidden.

    Query frames before `first` are left out.

    Raises:
        ValueError: if `visible` is not a square bool matrix or a frame would see nothing.
    """
    if visible is None:
        return None
    if visible.dtype != torch.bool or visible.ndim != 2 or visible.shape[0] != visible.shape[1]:
        raise ValueError(
            f"visible must be a square bool matrix, got {visible.dtype} {tuple(visible.shape)}"
        )
    rows = tuple(tuple(row) for row in visible.tolist())
    if not cached and not all(map(any, rows)):
        raise ValueError("visible has a row of False: every frame must see at least itself")
    rows = rows[first:]
    return None if all(map(all, rows)) else rows


def dense_bytes(rows: Rows, tokens: int, cached: int, dtype: torch.dtype) -> int:
    """Bytes of the dense mask of these frames at `tokens` tokens per frame."""
    return len(rows) * tokens * (cached + len(rows[0])) * tokens * dtype.itemsize


@lru_cache(maxsize=16)
def dense_mask(
    rows: Rows, tokens: int, cached: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Additive mask [N * tokens, (cached + N) * tokens]: 0 visible, -inf hidden.

    Raises:
        ValueError: if it would take more than `DENSE_LIMIT` bytes.
    """
    size = dense_bytes(rows, tokens, cached, dtype)
    if size > DENSE_LIMIT:
        raise ValueError(
            f"attention: the dense mask of {len(rows) * tokens} x"
            f" {(cached + len(rows[0])) * tokens} tokens would take {size / 2**30:.1f} GiB (limit"
            f" {DENSE_LIMIT / 2**30:g} GiB): run on a CUDA device with launch.attention auto or"
            " flex, which needs no such mask, or make the clips smaller"
        )
    # Not in inference mode: a mask first asked for by validation would break training.
    with torch.inference_mode(False):
        hidden = F.pad(~torch.tensor(rows), (cached, 0), value=False)
        spread = hidden.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1).to(device)
        return torch.zeros(spread.shape, device=device, dtype=dtype).masked_fill_(
            spread, -torch.inf
        )


@lru_cache(maxsize=16)
def block_mask(rows: Rows, tokens: int, cached: int, device: torch.device) -> "BlockMask":
    """FlexAttention's mask: [N * tokens, (cached + N) * tokens], any number of tokens.

    torch's own `create_block_mask` first makes the dense [T, K] matrix; here tiles are counted from
    the frame matrix. A tile that extends past the last token counts as partly visible, as there.
    """
    from torch.nn.attention.flex_attention import BlockMask

    with torch.inference_mode(False):
        frames = frame_table(rows, cached, torch.device("cpu"))
        lengths = (frames.shape[0] * tokens, frames.shape[1] * tokens)
        some, whole = _tiles(frames, tokens)
        table = frame_table(rows, cached, device)

        def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return table[query // tokens, key // tokens]

        return BlockMask.from_kv_blocks(
            *_listed((some & ~whole).to(device)),
            *_listed(whole.to(device)),
            BLOCK_SIZE=TILE,
            mask_mod=sees,
            seq_lengths=lengths,
        )


@lru_cache(maxsize=16)
def frame_table(rows: Rows, cached: int, device: torch.device) -> Tensor:
    """Bool [N, cached + N]: whether this query frame sees that key frame."""
    with torch.inference_mode(False):
        return F.pad(torch.tensor(rows), (cached, 0), value=True).to(device)


def _tiles(frames: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Which tiles hold a visible pair, and which hold nothing else, each [Q tiles, K tiles]."""
    (first_row, last_row, inside_row), (first_column, last_column, inside_column) = (
        _frames_of_tiles(count, tokens) for count in frames.shape
    )
    # Visible frame pairs above and left of each corner: any rectangle is four of them.
    corners = F.pad(frames.long().cumsum(0).cumsum(1), (1, 0, 1, 0))
    seen = (
        corners[last_row + 1][:, last_column + 1]
        - corners[first_row][:, last_column + 1]
        - corners[last_row + 1][:, first_column]
        + corners[first_row][:, first_column]
    )
    all_of_them = (last_row - first_row + 1)[:, None] * (last_column - first_column + 1)
    return seen > 0, (seen == all_of_them) & inside_row[:, None] & inside_column


def _frames_of_tiles(frames: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """First and last frame of each tile, and whether the tile ends within the tokens."""
    starts = torch.arange(0, frames * tokens, TILE)
    last = (starts + TILE - 1).clamp(max=frames * tokens - 1)
    return starts // tokens, last // tokens, starts + TILE <= frames * tokens


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """How many key tiles each query tile has, and which come first: int32, [1, 1, ...]."""
    order = tiles.int().argsort(dim=1, descending=True, stable=True)
    return tiles.sum(1).int()[None, None], order.int().contiguous()[None, None]


@lru_cache(maxsize=64)
def prefixes(rows: Rows, tokens: int, cached: int) -> Prefixes | None:
    """Pieces (end of the queries, end of the keys they see), in tokens; None if there are none.

    Neighbouring query frames that see the same prefix are one piece. A fused commit (fast_past.py)
    has two: the clean block, and the noisy next block that sees it too.
    """
    pieces: list[tuple[int, int]] = []
    for query, row in enumerate(rows):
        seen = sum(row)
        if not all(row[:seen]):
            return None
        if pieces and pieces[-1][1] == (cached + seen) * tokens:
            pieces.pop()
        pieces.append(((query + 1) * tokens, (cached + seen) * tokens))
    return tuple(pieces)
