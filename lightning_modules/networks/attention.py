"""Attention of tokens whose visibility is decided frame by frame.

Every mask of this project is constant within a frame, so callers hand over a small bool matrix
[query frame, key frame]; here it is spread over the tokens. This file is the only one that calls an
attention kernel, and so the only one a faster backend would touch.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention.

    Args:
        queries: [B, T, heads, head_dim].
        keys: [B, K, heads, head_dim].
        values: as `keys`.
        mask: [T, K] additive (0 visible, -inf hidden), of the queries' dtype; None: all see all.

    Returns:
        [B, T, heads * head_dim].
    """
    out = F.scaled_dot_product_attention(
        queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask
    )
    return out.transpose(1, 2).flatten(2)


def token_mask(
    visible: Tensor | None, tokens: int, cached: int, device: torch.device, dtype: torch.dtype
) -> Tensor | None:
    """Spread a frame matrix over tokens; `cached` earlier frames are visible to all.

    Args:
        visible: [N, N] bool, row = query frame; None: all see all.
        tokens: tokens per frame.
        cached: frames in front of the keys that come from a cache.
        device: where the mask will be used.
        dtype: of the queries.

    Returns:
        [N * tokens, (cached + N) * tokens] additive mask, or None when nothing is hidden.
        Equal calls share one tensor: do not write to it.

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
    if all(map(all, rows)):
        return None
    if not cached and not all(map(any, rows)):
        raise ValueError("visible has a row of False: every frame must see at least itself")
    return _expand(rows, tokens, cached, device, dtype)


@lru_cache(maxsize=16)
def _expand(
    rows: tuple[tuple[bool, ...], ...],
    tokens: int,
    cached: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    # Not in inference mode: a mask first asked for by validation would break training.
    with torch.inference_mode(False):
        hidden = F.pad(~torch.tensor(rows), (cached, 0), value=False)
        spread = hidden.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1).to(device)
        return torch.zeros(spread.shape, device=device, dtype=dtype).masked_fill_(
            spread, -torch.inf
        )
