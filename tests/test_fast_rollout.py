"""FastPast samples as Past does: bit for bit, or up to rounding where calls are merged."""

from itertools import accumulate

import pytest
import torch
from tiny_rollouts import SHAPE, few_steps, make_net, setting
from torch import nn

from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.fast_past import COMMITS, FastPast
from lightning_modules.diffusion.flow import add_noise, time_grid, to_x0
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import (
    Past,
    Solve,
    cut,
    few_step_times,
    rollout,
    stream,
)
from lightning_modules.networks.wan.static_cache import StaticKVCache

pytestmark = pytest.mark.numeric

PARTITIONS = [(1,) * 6, (3, 3), (1, 2, 3)]
FUSED = {"rtol": 1e-5, "atol": 1e-6}  # rounding of sums that are split differently


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return make_net()


class Watched(nn.Module):
    """Notes every call: frames, times, how many frames the cache held, whether it was written."""

    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, []

    def new_cache(self, frames=None):
        return self.net.new_cache(frames)

    def forward(self, x, t, text, *, frames, cache, write_cache=False, **how):
        self.calls.append((frames.tolist(), t[0].tolist(), len(cache), write_cache))
        return self.net(x, t, text, frames=frames, cache=cache, write_cache=write_cache, **how)


def both(net, sizes, commit, denoise, guidance=1.0, **how):
    """The clip by the plain past and by the fast one."""
    random, text, noise = setting()
    negative = random.normal("negative", (5, 8))[0]
    plain = Past(net, text, negative, guidance)
    fast = FastPast(net, text, negative, guidance, frames=sum(sizes), commit=commit)
    return [rollout(past, noise, sizes, denoise(random), **how) for past in (plain, fast)]


@pytest.mark.parametrize("sizes", PARTITIONS)
@pytest.mark.parametrize("commit", ["separate", "fused"])
@torch.no_grad()
def test_students_sample_the_same(net, sizes, commit):
    plain, fast = both(net, sizes, commit, lambda random: few_steps(random, sizes))
    if commit == "separate":
        assert torch.equal(fast, plain)
    torch.testing.assert_close(fast, plain, **FUSED)


@pytest.mark.parametrize("sizes", PARTITIONS)
@pytest.mark.parametrize("commit", ["separate", "fused"])
@torch.no_grad()
def test_teachers_sample_the_same(net, sizes, commit):
    """Guided, so with a past for each of two prompts."""
    plain, fast = both(net, sizes, commit, lambda _: Solve(time_grid(5, 5.0)), guidance=3.0)
    if commit == "separate":
        assert torch.equal(fast, plain)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)  # five steps carry rounding on


@pytest.mark.parametrize("commit", ["separate", "fused"])
@torch.no_grad()
def test_noised_context_is_the_same(net, commit):
    sizes, eps = (1, 2, 3), setting()[0].normal("context", SHAPE)
    how = {"context_t": 0.3, "context_eps": eps}
    plain, fast = both(net, sizes, commit, lambda random: few_steps(random, sizes), **how)
    torch.testing.assert_close(fast, plain, **FUSED)
    clean = both(net, sizes, commit, lambda random: few_steps(random, sizes))[1]
    assert (fast - clean).abs().max() > 1e-3


@pytest.mark.parametrize("steps", [1, 2])
@torch.no_grad()
def test_without_commits_the_past_is_what_was_shown_last(net, steps):
    """Then a rollout is diffusion forcing of its last inputs: each as noisy as it was there."""
    sizes, (random, text, noise) = (1, 2, 3), setting()
    past = FastPast(net, text, frames=6, commit="none")
    clip = rollout(past, noise, sizes, few_steps(random, sizes, steps, first=steps))
    level = few_step_times(sizes, steps, steps, 5.0)[0][-1].expand(3, 6)
    last = noise
    if steps == 2:  # step 1, conditioned on the earlier blocks as they were last
        t = torch.ones(3, 6)
        last = torch.empty_like(noise)
        for block in (slice(0, 1), slice(1, 3), slice(3, 6)):
            x, levels = last.clone(), level.clone()
            x[:, block], levels[:, block] = noise[:, block], 1.0
            stop = block.stop
            v = forcing.diffusion_forcing(
                net, x[:, :stop], levels[:, :stop], text, sizes[: (1, 3, 6).index(stop) + 1]
            )
            x0 = to_x0(noise[:, block], v[:, block], t[:, block])
            fresh = random.normal("renoise/1", SHAPE)[:, block]
            last[:, block] = add_noise(x0, fresh, level[:, block])
    v = forcing.diffusion_forcing(net, last, level, text, sizes)
    torch.testing.assert_close(clip, to_x0(last, v, level), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("commit, calls", [("separate", 64), ("fused", 44), ("none", 44)])
@torch.no_grad()
def test_calls_of_a_two_step_clip(net, commit, calls):
    """21 frames: 4 + 20 x 2 calls, and 20 commits, that ride along or are spared."""
    watched, sizes = Watched(net), (1,) * 21
    random, text, noise = setting(["a"], 21)
    past = FastPast(watched, text, frames=21, commit=commit)
    rollout(past, noise, sizes, few_steps(random, sizes))
    assert len(watched.calls) == calls
    if commit == "fused":
        frames, times, held, written = watched.calls[4]
        assert (frames, times, held, written) == ([0, 1], [0.0, 1.0], 0, True)
        assert sum(len(frames) == 2 for frames, *_ in watched.calls) == 20


@pytest.mark.parametrize("commit", COMMITS)
@torch.no_grad()
def test_first_block_waits_for_no_commit(net, commit):
    watched, sizes = Watched(net), (1,) * 6
    random, text, noise = setting()
    past = FastPast(watched, text, frames=6, commit=commit)
    blocks = stream(past, cut(noise), sizes, few_steps(random, sizes))
    next(blocks)
    assert len(watched.calls) == 4 and all(frames == [0] for frames, *_ in watched.calls)


@pytest.mark.parametrize("commit", COMMITS)
@torch.no_grad()
def test_buffers_serve_the_next_prompts(net, commit):
    """Other prompts, then another batch size, each as if in buffers of their own."""
    sizes = (1, 2, 3)
    random, text, noise = setting("xyz")
    past = FastPast(net, text, text[0], 2.0, frames=6, commit=commit)
    rollout(past, noise, sizes, few_steps(random, sizes))
    past.cache.frames = past.cache.frames[:1]  # as if left in the middle
    for keys in ("abc", "ab", "a", "cba"):
        random, text, noise = setting(keys)
        again = rollout(past.restart(text), noise, sizes, few_steps(random, sizes))
        fresh = FastPast(net, text, setting("xyz")[1][0], 2.0, frames=6, commit=commit)
        assert torch.equal(again, rollout(fresh, noise, sizes, few_steps(random, sizes)))


@pytest.mark.parametrize(
    "sizes, count", [((1,) * 6, 1), ((1,) * 6, 3), ((1, 2, 3), 3), ((3, 3), 3)]
)
@pytest.mark.parametrize("commit", COMMITS)
@torch.no_grad()
def test_given_frames_are_the_true_past(net, sizes, count, commit):
    """Image to video: what is given comes out as it is, and the rest leans on it."""
    watched, (random, text, noise) = Watched(net), setting()
    given = random.normal("real", SHAPE)[:, :count]
    past = FastPast(watched, text, frames=6, commit=commit)
    one_step = few_steps(random, sizes, steps=1, first=4)
    clip = rollout(past, noise, sizes, one_step, conditioning=given)
    assert torch.equal(clip[:, :count], given)
    denoised = [frames for frames, times, *_ in watched.calls if max(times) == 1.0]
    assert len(denoised) == sum(1 for end in accumulate(sizes) if end > count)  # one step each
    if commit == "none":
        return
    t = torch.ones(3, 6)
    v = forcing.teacher_forcing(net, noise, t, text, sizes, clean=clip)
    later = to_x0(noise, v, t)[:, count:]
    torch.testing.assert_close(clip[:, count:], later, rtol=1e-4, atol=1e-5)
    plain = rollout(Past(net, text), noise, sizes, one_step, conditioning=given)
    torch.testing.assert_close(clip, plain, **FUSED)


def test_a_static_cache_is_for_sampling_alone(net):
    random, text, noise = setting()
    past = FastPast(net, text, frames=6)
    with pytest.raises(AssertionError, match="no_grad"):
        past.velocity(noise[:, :1], torch.tensor(1.0), slice(0, 1))
    with torch.no_grad(), pytest.raises(ValueError, match="cache of 2 frames holds 0: 3 more"):
        StaticKVCache(layers=1, capacity=2).with_context(0, frames=3)


@torch.no_grad()
def test_a_static_cache_allocates_once(net):
    """What CUDA graphs rely on: the same addresses from prompt to prompt."""

    def addresses(cache: StaticKVCache) -> list[int]:
        parts = [cache.read(layer) for layer in range(2)]
        parts += cache.recall_text(past.text)
        return [part.data_ptr() for pair in parts for part in pair]

    random, text, noise = setting()
    past, sizes = FastPast(net, text, frames=6, commit="fused"), (1, 2, 3)
    rollout(past, noise, sizes, few_steps(random, sizes))
    cache = past.cache
    before, version = addresses(cache), cache.version
    random, text, noise = setting("xyz")
    rollout(past.restart(text), noise, sizes, few_steps(random, sizes))
    assert addresses(cache) == before and cache.version == version
    rollout(past.restart(text[:1]), noise[:1], sizes, few_steps(Randomness(1, 0, "x"), sizes))
    assert cache.version > version
