"""Classifier-free guidance in one batch equals two calls, one after another, everywhere."""

from functools import partial

import pytest
import torch
from posed_networks import matrices, posed_wan
from test_rollout import PARTITIONS, Counting
from tiny_networks import TINY, F
from tiny_rollouts import make_net, setting

from lightning_modules.diffusion.fast_past import FastPast
from lightning_modules.diffusion.flow import time_grid
from lightning_modules.diffusion.rollout import Past, Solve, rollout
from lightning_modules.networks.cameras import Posed

pytestmark = pytest.mark.numeric

SCALE = 3.0
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)


def negative_of(random):
    return random.normal("negative", (5, 8))[0]


class Apart:
    """The contract, a call for each half of the batch, each with a cache of its own."""

    def __init__(self, net):
        self.net = net

    def new_cache(self, *frames):
        return [self.net.new_cache(*frames) for _ in range(2)]

    def __call__(self, x, t, text, *, cache, **how):
        halves = zip(x.chunk(2), t.chunk(2), text.chunk(2), cache, strict=True)
        return torch.cat([self.net(x, t, c, cache=own, **how) for x, t, c, own in halves])


@pytest.mark.parametrize("sizes", PARTITIONS)
@torch.no_grad()
def test_a_rollout_with_one_cache_is_one_with_two(sizes):
    net, (random, text, noise) = make_net(), setting()
    how = noise, sizes, Solve(time_grid(3, 5.0))
    together = rollout(Past(net, text, negative_of(random), SCALE), *how)
    close(together, rollout(Past(Apart(net), text, negative_of(random), SCALE), *how))
    assert (together - rollout(Past(net, text), *how)).abs().max() > 0.01


@pytest.mark.parametrize("commit", ["separate", "fused", "none"])
@pytest.mark.parametrize("window", [0, 3])
@torch.no_grad()
def test_a_window_moves_both_branches(commit, window):
    net, (random, text, noise) = make_net(), setting()
    negative, how = negative_of(random), {"frames": 6, "window": window, "commit": commit}
    together = FastPast(net, text, negative, SCALE, **how)
    conditional, unconditional = (
        FastPast(net, each, **how) for each in (text, negative.expand_as(text))
    )
    each = (_velocities(past, noise) for past in (together, conditional, unconditional))
    for v, c, u in zip(*each, strict=True):
        close(v, u + SCALE * (c - u))


@pytest.mark.parametrize("commit, commits", [("separate", 5), ("fused", 0), ("none", 0)])
@torch.no_grad()
def test_calls_of_a_guided_clip(commit, commits):
    """As many as of one that is not guided: of the last frame there is no commit."""
    net, (random, text, noise) = make_net(), setting()
    counting = Counting(net)
    counting.new_cache = net.new_cache
    past = FastPast(counting, text, negative_of(random), SCALE, frames=6, commit=commit)
    rollout(past, noise, (1,) * 6, Solve(time_grid(3, 5.0)))
    assert counting.denoised + counting.committed == 6 * 3 + commits


def _velocities(past, noise):
    """At each frame's noise, then that frame is the context of the next, whatever was answered."""
    for index in range(noise.shape[1]):
        block = slice(index, index + 1)
        yield past.velocity(noise[:, block], torch.tensor(0.7), block)
        past.commit(noise[:, block], block)


@pytest.mark.parametrize("bound", ["clip", "stream"])
@torch.no_grad()
def test_cameras_are_those_of_the_clip_in_both_branches(bound):
    net, cameras = posed_wan(), matrices()
    posed = Posed(net, cameras if bound == "clip" else lambda frames: cameras[:, frames])
    noise, text = torch.randn(3, F, TINY["in_channels"], 4, 4), torch.randn(3, 5, TINY["text_dim"])
    negative = torch.randn(5, TINY["text_dim"])
    pasts = (
        Past(posed, text, negative, SCALE),
        Past(posed, text),
        Past(posed, negative.expand_as(text)),
    )
    for v, c, u in zip(*(_velocities(past, noise) for past in pasts), strict=True):
        close(v, u + SCALE * (c - u))
