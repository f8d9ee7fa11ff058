"""Windows and sinks against one uncached pass in which dropped frames are masked, by loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_rollouts import few_steps, make_net, setting

from lightning_modules.diffusion.fast_past import FastPast
from lightning_modules.diffusion.rollout import FewSteps, Past, few_step_times, rollout
from lightning_modules.networks import KVCache
from lightning_modules.networks.wan.static_cache import StaticKVCache

pytestmark = pytest.mark.numeric

FRAMES = 9
PARTITIONS = {"framewise": (1,) * 9, "chunkwise": (3, 3, 3), "ragged": (1, 2, 3, 1, 2)}


@pytest.fixture(scope="module")
def net():
    return make_net()


def held_frames(sizes, window: int, sinks: int) -> list[list[int]]:
    """The earlier frames that each block sees; what was dropped once stays dropped."""
    held, seen, start = [], [], 0
    for size in sizes:
        room = window - size
        if len(held) > room:
            held = held[:sinks] + held[len(held) - (room - sinks) :]
        seen.append(list(held))
        held = held + list(range(start, start + size))
        start += size
    return seen


def masked_reference(net, noise, clip, text, sizes, window, sinks):
    """Each block in one step from noise, conditioned on the finished clip; nothing is cached."""
    seen, made, start = held_frames(sizes, window, sinks), [], 0
    for number, size in enumerate(sizes):
        block, stop = list(range(start, start + size)), start + size
        visible = torch.zeros(start + size, start + size, dtype=torch.bool)
        first = 0
        for earlier, count in enumerate(sizes[: number + 1]):
            for query in range(first, first + count):
                visible[query, seen[earlier]] = True
                visible[query, first : first + count] = True
            first += count
        x = torch.cat([clip[:, :start], noise[:, block]], 1)
        t = torch.cat([torch.zeros(len(x), start), torch.ones(len(x), size)], 1)
        v = net(x, t, text, frames=torch.arange(stop), visible=visible)
        made.append(noise[:, block] - v[:, start:])
        start += size
    return torch.cat(made, 1)


@pytest.mark.parametrize("commit", ["separate", "fused"])
@pytest.mark.parametrize("window, sinks", [(4, 0), (5, 1), (6, 2), (9, 0), (20, 3)])
@pytest.mark.parametrize("name", PARTITIONS)
@torch.no_grad()
def test_dropped_frames_are_masked_frames(net, name, window, sinks, commit):
    sizes = PARTITIONS[name]
    random, text, noise = setting(frames=FRAMES)
    past = FastPast(net, text, frames=FRAMES, window=window, sinks=sinks, commit=commit)
    clip = rollout(past, noise, sizes, few_steps(random, sizes, steps=1, first=1))
    expected = masked_reference(net, noise, clip, text, sizes, window, sinks)
    torch.testing.assert_close(clip, expected, rtol=1e-4, atol=1e-5)
    full = rollout(Past(net, text), noise, sizes, few_steps(random, sizes, steps=1, first=1))
    if window < FRAMES:
        assert (clip - full).abs().max() > 1e-4
    else:
        torch.testing.assert_close(clip, full, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_window_has_no_end(net):
    """Far beyond any table, in buffers of a few frames."""
    sizes, frames = (1,) * 40, 40
    random, text, noise = setting(["a"], frames)
    past = FastPast(net, text, frames=frames, window=4, sinks=1)
    sampler = FewSteps(few_step_times(sizes, 1, 1, 5.0), lambda step: noise)
    clip = rollout(past, noise, sizes, sampler)
    assert torch.isfinite(clip).all()
    cache = past.cache
    assert sorted(cache.frames) == [0, 37, 38] and cache.read(0)[0].shape[1] == 3 * 4
    expected = masked_reference(net, noise, clip, text, sizes, 4, 1)
    torch.testing.assert_close(clip, expected, rtol=1e-4, atol=1e-5)


def fill(cache: KVCache, frames: list[int]) -> None:
    """Frame f shows keys full of f and values full of -f, in both of two layers."""
    parts = [torch.full((2, 3, 1, 2), float(frame)) for frame in frames]
    keys = torch.cat(parts, 1)
    own = [(keys + layer, -keys) for layer in range(2)]
    for layer, pair in enumerate(own):
        cache.with_context(layer, len(frames))(*pair)
    cache.append(frames, own)


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=8),
    window=st.integers(4, 8),
    sinks=st.integers(0, 3),
    undone=st.booleans(),
)
@settings(max_examples=60)
@torch.no_grad()
def test_both_caches_hold_the_same_frames(sizes, window, sinks, undone):
    """Any blocks, any window; the static cache in an order of its own, and never a stale key."""
    room = max(sizes)
    if window - room <= sinks:
        window = room + sinks + 1
    growing, static = KVCache(2), StaticKVCache(2, window)
    start = 0
    for size in sizes:
        frames = list(range(start, start + size))
        for cache in (growing, static):
            if len(cache) + size > window:
                cache.keep(window - size, sinks)
            fill(cache, frames)
            if undone:
                cache.retract(size)
                fill(cache, frames)
        assert sorted(static.frames) == list(growing.frames)
        for layer in range(2):
            for cache in (growing, static):
                keys, values = cache.read(layer)
                expected = torch.tensor(cache.frames).float().repeat_interleave(3)
                assert torch.equal(keys[0, :, 0, 0] - layer, expected)
                assert torch.equal(values[1, :, 0, 1], -expected)
        start += size
