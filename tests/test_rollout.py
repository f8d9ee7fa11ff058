"""One rollout for training and sampling: exits, gradients, commits, counts, batches, twins."""

import pytest
import torch
from tiny_rollouts import SHAPE, make_net, setting
from torch import nn

from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.flow import add_noise, time_grid, to_x0
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import (
    FewSteps,
    Past,
    Solve,
    cut,
    few_step_times,
    rollout,
    solve,
    stream,
)

pytestmark = pytest.mark.numeric

PARTITIONS = [(1,) * 6, (3, 3), (1, 2, 3)]


@pytest.fixture
def net() -> nn.Module:
    return make_net().requires_grad_(True)


class Counting(nn.Module):
    """Counts the network's calls, by what they are for."""

    def __init__(self, net):
        super().__init__()
        self.net, self.denoised, self.committed, self.with_grad = net, 0, 0, 0

    def new_cache(self):
        return self.net.new_cache()

    def forward(self, *args, write_cache=False, **kwargs):
        self.committed += write_cache
        self.denoised += not write_cache
        self.with_grad += torch.is_grad_enabled()
        return self.net(*args, write_cache=write_cache, **kwargs)


def few_steps(random, sizes, steps=4, first=4, exits=None):
    times = few_step_times(sizes, steps, first, 5.0)
    return FewSteps(times, lambda step: random.normal(f"renoise/{step}", SHAPE), exits)


@pytest.mark.parametrize("sizes", PARTITIONS)
@torch.no_grad()
def test_every_block_of_a_rollout_is_its_teacher_forced_twin(net, sizes):
    """The cached path equals the parallel pass conditioned on the generated clip."""
    random, text, noise = setting()
    clip = rollout(Past(net, text), noise, sizes, few_steps(random, sizes, steps=1, first=1))
    t = torch.ones(3, SHAPE[0])
    v = forcing.teacher_forcing(net, noise, t, text, sizes, clean=clip)
    torch.testing.assert_close(to_x0(noise, v, t), clip, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_noisy_context_is_noised_and_declared(net):
    """Published inference declares a context time but adds no noise; training does both."""
    sizes, (random, text, noise) = (1,) * 6, setting()
    eps, level = random.normal("context", SHAPE), 0.3
    one_step = few_steps(random, sizes, steps=1, first=1)
    past = Past(net, text)
    clip = rollout(past, noise, sizes, one_step, context_t=level, context_eps=eps)
    t = torch.ones(3, SHAPE[0])
    context = add_noise(clip, eps, level * t)
    v = forcing.teacher_forcing(net, noise, t, text, sizes, context, clean_t=level * t)
    torch.testing.assert_close(to_x0(noise, v, t), clip, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_clean_context_is_clean(net):
    """The published rollout injects half a percent of noise at "context noise 0"."""
    _, text, noise = setting()
    committed = []
    net.register_forward_pre_hook(
        lambda _, args, kwargs: committed.append(args[:2]) if kwargs.get("write_cache") else None,
        with_kwargs=True,
    )
    past = Past(net, text)
    past.commit(noise[:, :1], slice(0, 1))
    x, t = committed[0]
    assert torch.equal(x, noise[:, :1]) and not t.any()


@torch.no_grad()
def test_last_exit_is_the_sampler(net):
    sizes, (random, text, noise) = (1,) * 6, setting()
    sampled = rollout(Past(net, text), noise, sizes, few_steps(random, sizes))
    left = rollout(Past(net, text), noise, sizes, few_steps(random, sizes, exits=[3] * 6))
    assert torch.equal(sampled, left)


@torch.no_grad()
def test_three_in_a_batch_are_three_alone(net):
    sizes, (random, text, noise) = (1, 2, 3), setting()
    together = rollout(Past(net, text), noise, sizes, few_steps(random, sizes))
    for row, key in enumerate("abc"):
        random, text, noise = setting([key])
        alone = rollout(Past(net, text), noise, sizes, few_steps(random, sizes))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exit_step", [0, 2])
def test_gradient_only_through_the_exit_step(net, exit_step):
    counting, sizes, (random, text, noise) = Counting(net), (1,) * 6, setting()
    clip = rollout(
        Past(counting, text), noise, sizes, few_steps(random, sizes, exits=[exit_step] * 6)
    )
    assert counting.with_grad == 6
    assert counting.denoised == 6 * (exit_step + 1) and counting.committed == 5
    clip.square().mean().backward()
    assert all(p.grad is not None for p in net.blocks.parameters())


def test_gradient_equals_the_parallel_pass_beside_a_detached_past(net):
    """Whole-rollout gradients against their uncached twin; a leak through the cache would show."""
    sizes, (random, text, noise) = (1, 2, 3), setting()
    noise.requires_grad_(True)
    one_step = few_steps(random, sizes, steps=1, first=1)
    clip = rollout(Past(net, text), noise, sizes, one_step)
    clip.pow(3).sum().backward()
    cached = [p.grad.clone() for p in net.blocks.parameters()]
    net.zero_grad()

    t = torch.ones(3, SHAPE[0])
    v = forcing.teacher_forcing(net, noise, t, text, sizes, clean=clip.detach())
    past_keys_carry_gradient = to_x0(noise, v, t).pow(3).sum()
    past_keys_carry_gradient.backward()
    leaking = [p.grad.clone() for p in net.blocks.parameters()]
    # The parallel pass also differentiates the clean half's keys: that is the leak.
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(cached, leaking, strict=True))

    net.zero_grad()
    for block in (slice(0, 1), slice(1, 3), slice(3, 6)):
        past = Past(net, text)
        for earlier in (slice(0, 1), slice(1, 3)):
            if earlier.stop <= block.start:
                past.commit(clip[:, earlier], earlier)
        x0 = noise[:, block] - past.velocity(noise[:, block], torch.tensor(1.0), block)
        x0.pow(3).sum().backward()
    for one, other in zip(cached, net.blocks.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, rtol=1e-3, atol=1e-4)


def test_no_gradient_from_a_later_block_into_an_earlier_one(net):
    sizes, (random, text, noise) = (1,) * 6, setting()
    noise.requires_grad_(True)
    clip = rollout(Past(net, text), noise, sizes, few_steps(random, sizes, steps=1, first=1))
    (gradient,) = torch.autograd.grad(clip[:, 4].sum(), noise)
    assert gradient[:, 4].any() and not gradient[:, :4].any() and not gradient[:, 5:].any()


@pytest.mark.parametrize("size, steps, denoised", [(3, 4, 28), (1, 4, 84), (1, 2, 44), (1, 1, 24)])
@torch.no_grad()
def test_published_forward_counts(net, size, steps, denoised):
    """21 frames; the published counts add a commit of the last block, which nobody reads."""
    sizes, counting = (size,) * (21 // size), Counting(net)
    random = Randomness(0, 0, ["a"])
    text, noise = random.normal("text", (5, 8)), random.normal("noise", (21, 4, 2, 2))
    sampler = FewSteps(few_step_times(sizes, steps, 4, 5.0), lambda step: noise)
    rollout(Past(counting, text), noise, sizes, sampler)
    assert (counting.denoised, counting.committed) == (denoised, len(sizes) - 1)


def test_first_frame_list_is_for_block_zero_only():
    times = few_step_times((1, 1, 1), 1, 4, 5.0)
    assert [len(t) for t in times] == [4, 1, 1]
    assert torch.equal(times[0].double(), time_grid(4, 5.0)[:-1].float().double())


@torch.no_grad()
def test_streaming_commits_only_when_more_is_wanted(net):
    sizes, (random, text, noise), counting = (1,) * 6, setting(), Counting(net)
    blocks = stream(Past(counting, text), cut(noise), sizes, few_steps(random, sizes))
    next(blocks)
    assert (counting.denoised, counting.committed) == (4, 0)


@pytest.mark.parametrize("sizes", PARTITIONS)
@torch.no_grad()
def test_teacher_forced_ode_cached_equals_parallel(net, sizes):
    """Causal ODE pairs: blocks conditioned on committed *real* blocks = the 2N-pass trajectory."""
    random, text, noise = setting()
    real, grid, kept = random.normal("real", SHAPE), time_grid(6, 5.0), [0, 3, 6]
    negative = random.normal("negative", (5, 8))[0]
    solver = Solve(grid, kept)
    rollout(Past(net, text, negative, 3.0), noise, sizes, solver, truth=real)

    def v(x, t):
        level = t.expand(3, SHAPE[0])
        return forcing.guided(
            lambda c: forcing.teacher_forcing(net, x, level, c, sizes, clean=real),
            text,
            negative,
            3.0,
        )

    _, states = solve(v, noise, grid.float(), kept)
    torch.testing.assert_close(torch.cat(solver.states, 2), states, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_one_block_is_bidirectional(net):
    random, text, noise = setting()
    t = random.uniform("time", (6,))
    together = forcing.bidirectional(net, noise, t, text)
    causal = forcing.diffusion_forcing(net, noise, t, text, (6,))
    alone = forcing.teacher_forcing(net, noise, t, text, (6,), clean=torch.randn_like(noise))
    torch.testing.assert_close(causal, together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_guidance_one_does_not_ask_the_unconditional_branch(net):
    counting, (_, text, noise) = Counting(net), setting()
    t = torch.full((3, 6), 0.5)
    forcing.guided(lambda c: forcing.bidirectional(counting, noise, t, c), text, text[0], 1.0)
    assert counting.denoised == 1
