"""Sinks that follow the window: a block sees them just before the other frames, as without cache.

With one layer a frame's keys do not depend on what it saw, so that the twin without a cache is one
call on the frames that a block sees, at the positions that it sees them at.
"""

import pytest
import torch
from posed_networks import posed_wan
from test_window import held_frames
from tiny_rollouts import few_steps, make_net, setting

from lightning_modules.diffusion.fast_past import FastPast
from lightning_modules.diffusion.rollout import rollout
from lightning_modules.diffusion.visibility import spans
from lightning_modules.networks.wan.static_cache import StaticKVCache

pytestmark = pytest.mark.numeric

FRAMES = 12
PARTITIONS = {"framewise": (1,) * 12, "chunkwise": (2,) * 6, "ragged": (1, 2, 1, 3, 1, 2, 2)}


def followed(seen: list[int], sinks: int) -> list[int]:
    """Where the frames that are seen stand."""
    others = [frame for frame in seen if frame >= sinks]
    first = others[0] - sinks if others else 0
    return [*range(first, first + len(seen) - len(others)), *others]


@pytest.mark.parametrize("commit", ["separate", "fused"])
@pytest.mark.parametrize("window, sinks", [(5, 1), (6, 2), (20, 1)])
@pytest.mark.parametrize("name", PARTITIONS)
@torch.no_grad()
def test_a_block_sees_sinks_where_they_followed_to(name, window, sinks, commit):
    sizes, net = PARTITIONS[name], make_net()
    net.blocks = net.blocks[:1]
    random, text, noise = setting(frames=FRAMES)
    past = FastPast(
        net, text, frames=FRAMES, window=window, sinks=sinks, sinks_follow=True, commit=commit
    )
    clip = rollout(past, noise, sizes, few_steps(random, sizes, steps=1, first=1))
    for block, frames in zip(spans(sizes), held_frames(sizes, window, sinks), strict=True):
        x = torch.cat([clip[:, frames], noise[:, block]], 1)
        t = torch.zeros(x.shape[:2])
        t[:, len(frames) :] = 1
        visible = torch.eye(x.shape[1], dtype=torch.bool)
        visible[len(frames) :] = True
        places = torch.tensor([*followed(frames, sinks), *range(block.start, block.stop)])
        v = net(x, t, text, frames=places, visible=visible)[:, len(frames) :]
        torch.testing.assert_close(clip[:, block], noise[:, block] - v, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_until_the_window_is_full_nothing_differs_and_then_something_does():
    sizes, net = (1,) * FRAMES, make_net()
    random, text, noise = setting(frames=FRAMES)

    def clip(**how):
        past = FastPast(net, text, frames=FRAMES, window=5, sinks=1, **how)
        return rollout(past, noise, sizes, few_steps(random, sizes, steps=1, first=1))

    absolute, followed = clip(), clip(sinks_follow=True)
    assert torch.equal(absolute[:, :5], followed[:, :5])
    assert (absolute[:, 6:] - followed[:, 6:]).abs().amax((0, 2, 3, 4)).min() > 1e-6


@torch.no_grad()
def test_after_a_thousand_frames_keys_were_turned_once():
    """Those of sinks that stand where they followed to, though the network has two layers."""
    net, frames = make_net(), 1000
    _, text, noise = setting(["a"], frames=frames)
    cache, t = net.new_cache(5), torch.zeros(1, 1)
    for frame in range(frames):
        if len(cache) == 5:
            cache.keep(4, sinks=2)
            cache.follow(2)
        x = noise[:, frame : frame + 1]
        net(x, t, text, frames=torch.tensor([frame]), cache=cache, write_cache=True, predicted=0)
    assert cache.frames[:2] == (0, 1)
    first_other = min(cache.frames[2:])
    fresh = net.new_cache(5)
    for sink in range(2):
        at = torch.tensor([first_other - 2 + sink])
        x = noise[:, sink : sink + 1]
        net(x, t, text, frames=at, cache=fresh, write_cache=True, predicted=0)
    for layer in range(len(net.blocks)):
        for found, expected in zip(cache.part(layer, 0, 2), fresh.part(layer, 0, 2), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


def full(keys: torch.Tensor, cache: StaticKVCache) -> torch.Tensor:
    """Keys of the sink [B, S, 2 H, E] of six frames of which two are dropped."""
    cache.restart()
    cache.with_context(0, 6)(keys, keys)
    cache.append(range(6), [(keys, keys)])
    cache.keep(4, sinks=1)
    before = cache.part(0, 0, 1)[0].clone()
    assert torch.equal(before, keys[:, :2])
    cache.follow(1)
    return cache.part(0, 0, 1)[0].clone()


@torch.no_grad()
def test_heads_under_prope_stay_as_they_are():
    heads = posed_wan().config.num_attention_heads
    cache, keys = StaticKVCache(1, 6, posed=True), torch.randn(1, 12, 2 * heads, 12)
    turned = full(keys, cache)
    assert torch.equal(turned[:, :, heads:], keys[:, :2, heads:])
    assert (turned[:, :, :heads] - keys[:, :2, :heads]).abs().max() > 0.1
    assert torch.equal(cache.part(0, 0, 1)[1], keys[:, :2]), "values have no positions"


@torch.no_grad()
def test_a_restart_forgets_the_sinks_that_were():
    cache, first, second = StaticKVCache(1, 6), *torch.randn(2, 1, 12, 2, 12)
    full(first, cache)
    assert torch.equal(full(second, cache), full(second, StaticKVCache(1, 6)))


@torch.no_grad()
def test_without_other_frames_there_is_nothing_to_follow():
    cache, keys = StaticKVCache(1, 6), torch.randn(1, 2, 2, 12)
    cache.with_context(0, 1)(keys, keys)
    cache.append([0], [(keys, keys)])
    cache.follow(1)
    assert torch.equal(cache.part(0, 0, 1)[0], keys)
