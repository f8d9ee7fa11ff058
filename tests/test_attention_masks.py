"""Masks of tiles are those of torch, and need no dense matrix; a large dense one is refused."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from lightning_modules.diffusion import visibility
from lightning_modules.networks.wan import masks
from lightning_modules.networks.wan.attention import attention_mask

CPU = torch.device("cpu")


@given(
    rows=st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=n, max_size=n)
    ),
    tokens=st.sampled_from([1, 3, 43, 64, 128, 130, 200]),
    cached=st.integers(0, 3),
)
@settings(max_examples=40)
def test_tiles_are_torchs(rows, tokens, cached):
    """The tiles counted from frames are those that torch finds in the dense matrix."""
    rows = tuple(tuple(row) for row in rows)
    ours = masks.block_mask(rows, tokens, cached, CPU)
    theirs = create_block_mask(
        ours.mask_mod, None, None, *ours.seq_lengths, device="cpu", BLOCK_SIZE=masks.TILE
    )
    assert ours.seq_lengths == (len(rows) * tokens, (cached + len(rows)) * tokens)
    for kind in ("kv", "full_kv", "q", "full_q"):
        found, wanted = (
            [
                listed[:many].tolist()
                for many, listed in zip(
                    getattr(mask, f"{kind}_num_blocks")[0, 0].tolist(),
                    getattr(mask, f"{kind}_indices")[0, 0],
                    strict=True,
                )
            ]
            for mask in (ours, theirs)
        )
        assert found == wanted, kind


def test_full_size_needs_no_dense_matrix():
    """42 frames of 1,560 tokens: 512 x 512 tiles, about half of them seen, in no time."""
    visible = visibility.teacher_forcing_mask((1,) * 21)
    rows = masks.hidden_rows(visible, 0)
    start = time.perf_counter()
    mask = masks.block_mask(rows, 1560, 0, CPU)
    assert time.perf_counter() - start < 5  # the dense matrix takes longer to fill
    assert mask.seq_lengths == (65_520, 65_520) and mask.kv_indices.shape == (1, 1, 512, 512)
    tiles = mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum()
    assert 1.0 < tiles / (512 * 512 * visible.float().mean()) < 1.15
    assert masks.block_mask(rows, 1560, 0, CPU) is mask
    # Tile (100, 5) lies in query frame 8 and key frame 0; (0, 13) crosses key frames 1 and 0.
    assert 5 in mask.full_kv_indices[0, 0, 100][: mask.full_kv_num_blocks[0, 0, 100]]
    assert 13 not in mask.kv_indices[0, 0, 0][: mask.kv_num_blocks[0, 0, 0]]


def test_a_dense_mask_of_many_tokens_is_refused():
    visible = visibility.teacher_forcing_mask((1,) * 21)
    with pytest.raises(ValueError, match=r"65520 x 65520 tokens would take 8\.0 GiB \(limit 1 GiB"):
        attention_mask(visible, 1560, 0, CPU, torch.bfloat16)
    assert attention_mask(None, 1560, 0, CPU, torch.bfloat16) is None
