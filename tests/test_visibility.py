"""Attention masks (who sees whom): drawings, and brute force for every partition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.diffusion import visibility

partitions = st.lists(st.integers(1, 4), min_size=1, max_size=6)


def drawn(rows: str) -> torch.Tensor:
    return torch.tensor([[cell == "1" for cell in row] for row in rows.split()])


def test_framewise_drawing():
    expected = drawn("100000 110000 111000 000100 100010 110001")
    assert torch.equal(visibility.teacher_forcing_mask((1, 1, 1)), expected)


def test_chunkwise_drawing():
    expected = drawn("11000000 11000000 11110000 11110000 00001100 00001100 11000011 11000011")
    assert torch.equal(visibility.teacher_forcing_mask((2, 2)), expected)


@given(sizes=partitions)
def test_teacher_forcing_equals_brute_force(sizes):
    block = [index for index, size in enumerate(sizes) for _ in range(size)]
    frames = len(block)
    matrix = visibility.teacher_forcing_mask(sizes)
    for query in range(2 * frames):
        for key in range(2 * frames):
            q, k = block[query % frames], block[key % frames]
            if query < frames:
                allowed = key < frames and k <= q
            else:
                allowed = (key < frames and k < q) or (key >= frames and k == q)
            assert matrix[query, key] == allowed


@given(sizes=partitions)
def test_block_causal_equals_brute_force(sizes):
    block = [index for index, size in enumerate(sizes) for _ in range(size)]
    matrix = visibility.block_causal_mask(sizes)
    for query, q in enumerate(block):
        for key, k in enumerate(block):
            assert matrix[query, key] == (k <= q)


@given(blocks=st.integers(2, 12), size=st.integers(1, 3))
def test_density(blocks, size):
    """(1 + 1/N) / 4 of the square, for N equal blocks."""
    density = visibility.teacher_forcing_mask((size,) * blocks).double().mean().item()
    assert density == pytest.approx((1 + 1 / blocks) / 4)


@pytest.mark.parametrize(
    "blocks, frames, sizes",
    [
        ("framewise", 3, (1, 1, 1)),
        ("chunkwise", 6, (3, 3)),
        (2, 4, (2, 2)),
        ([1, 3], 7, (1, 3, 3)),
        ([1, 2, 5], 8, (1, 2, 5)),
    ],
)
def test_partition(blocks, frames, sizes):
    assert visibility.partition(blocks, frames) == sizes
    spans = list(visibility.spans(sizes))
    assert [s.stop - s.start for s in spans] == list(sizes)
    assert visibility.block_of(sizes).tolist() == [b for b, n in enumerate(sizes) for _ in range(n)]


@pytest.mark.parametrize(
    "blocks, says", [("chunkwise", "8 frames"), ("frame", "framewise"), (0, "no frames")]
)
def test_partition_refuses(blocks, says):
    with pytest.raises(ValueError, match=says):
        visibility.partition(blocks, 8)
