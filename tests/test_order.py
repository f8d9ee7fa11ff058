"""The sample order: each sample once per epoch, split among ranks, the same after any resume."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.order import StepBatches, permutation, rank_batch, samples_at

counts = st.integers(1, 60)
seeds = st.integers(0, 2**31)


def batches(count, batch, steps, seed, **where):
    return list(StepBatches(count=count, batch=batch, steps=steps, seed=seed, **where))


@given(count=counts, seed=seeds, epoch=st.integers(0, 5))
def test_each_sample_comes_once_an_epoch(count, seed, epoch):
    assert sorted(permutation(count, seed, epoch)) == list(range(count))
    positions = np.arange(epoch * count, (epoch + 1) * count)
    np.testing.assert_array_equal(
        samples_at(positions, count, seed), permutation(count, seed, epoch)
    )


@given(count=counts, batch=st.integers(1, 17), steps=st.integers(0, 12), seed=seeds)
def test_batches_cut_the_row_of_epochs(count, batch, steps, seed):
    """Epochs that no batch divides lose and repeat nothing: the row simply goes on."""
    row = [i for step in batches(count, batch, steps, seed) for i in step]
    epochs = -(-steps * batch // count)
    want = [i for epoch in range(epochs) for i in permutation(count, seed, epoch)]
    assert row == want[: steps * batch]


@given(
    count=counts,
    share=st.integers(1, 5),
    world=st.integers(1, 8),
    step=st.integers(0, 9),
    seed=seeds,
)
def test_ranks_part_the_global_batch(count, share, world, step, seed):
    batch = share * world
    whole = rank_batch(step, count=count, batch=batch, seed=seed)
    parts = [
        rank_batch(step, count=count, batch=batch, seed=seed, rank=rank, world=world)
        for rank in range(world)
    ]
    assert all(len(part) == share for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@given(count=counts, batch=st.integers(1, 9), steps=st.integers(1, 12), seed=seeds, data=st.data())
def test_a_resumed_order_is_the_rest_of_the_whole(count, batch, steps, seed, data):
    start = data.draw(st.integers(0, steps))
    resumed = StepBatches(count=count, batch=batch, steps=steps, seed=seed, start=start)
    assert list(resumed) == batches(count, batch, steps, seed)[start:]
    assert len(resumed) == steps


def test_seeds_and_epochs_differ():
    orders = {tuple(permutation(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_the_order_is_pinned():
    """Data order is part of every published result; a change here must be deliberate."""
    assert permutation(8, 0, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]


def test_a_world_that_does_not_divide_the_batch_is_refused_with_the_cure():
    with pytest.raises(ValueError, match="batch of 64 cannot be split over 3.*multiple of 3"):
        StepBatches(count=10, batch=64, steps=1, seed=0, world=3)
    with pytest.raises(ValueError, match="empty"):
        rank_batch(0, count=0, batch=2, seed=0)


def test_the_cached_order_cannot_be_changed_by_a_caller():
    with pytest.raises(ValueError, match="read-only"):
        permutation(5, 0, 0)[0] = 1
