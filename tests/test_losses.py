"""The losses against their formulas, EMA in fp32, per-sample random draws."""

import pytest
import torch
from torch import nn

from lightning_modules.diffusion.losses import (
    distribution_matching,
    distribution_matching_gradient,
    regression,
)
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.training.ema import EMA

pytestmark = pytest.mark.numeric

SHAPE = (3, 2, 4, 2, 2)


def clips(*seeds: int) -> list[torch.Tensor]:
    return [torch.randn(SHAPE, generator=torch.Generator().manual_seed(s)) for s in seeds]


def test_distribution_matching_gradient_is_its_formula():
    x, real, fake = clips(1, 2, 3)
    x.requires_grad_(True)
    gradient = distribution_matching_gradient(x, real, fake)
    distribution_matching(x, gradient).backward()
    for b in range(len(x)):
        scale = (x[b] - real[b]).abs().mean()
        expected = (fake[b] - real[b]) / scale / x.numel()
        torch.testing.assert_close(x.grad[b], expected.detach())


def test_distribution_matching_agrees_with_the_published_surrogate():
    x, real, fake = (c.double() for c in clips(1, 2, 3))
    gradient = distribution_matching_gradient(x, real, fake)
    ours, theirs = (x.clone().requires_grad_(True) for _ in range(2))
    distribution_matching(ours, gradient).backward()
    ((theirs - (theirs - gradient).detach()).square().mean() / 2).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_distribution_matching_moves_towards_real():
    x, real, fake = clips(1, 2, 3)
    x = fake.clone().requires_grad_(True)
    distribution_matching(x, distribution_matching_gradient(x, real, fake)).backward()
    assert regression(x - 0.1 * x.numel() * x.grad, real) < regression(x, real)


def test_distribution_matching_vanishes_when_critic_is_teacher():
    x, score = clips(1, 2)
    assert not distribution_matching_gradient(x, score, score).any()


def test_distribution_matching_stays_finite_when_the_clip_is_the_score():
    """Published code divides by zero here and lets nan_to_num make it the largest float."""
    (x,) = clips(1)
    gradient = distribution_matching_gradient(x, x.clone(), x + 1e-6)
    assert gradient.isfinite().all() and gradient.abs().max() < 1


def test_regression_target_is_a_constant():
    prediction, target = (c.requires_grad_(True) for c in clips(1, 2))
    regression(prediction, target).backward()
    torch.testing.assert_close(prediction.grad, 2 * (prediction - target).detach() / target.numel())
    assert target.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ema_is_fp32_and_moves_at_the_rates_used_here(dtype):
    network = nn.Linear(4, 4).to(dtype)
    start = network.weight.detach().float().clone()
    ema = EMA(network, 0.999)
    with torch.no_grad():
        network.weight.add_(2**-4)
    moved = network.weight.detach().float()
    for _ in range(100):
        ema.update(network)
    assert ema.module.weight.dtype == torch.float32
    expected = moved + (start - moved) * 0.999**100
    torch.testing.assert_close(ema.module.weight, expected, rtol=1e-4, atol=1e-6)


def test_noise_belongs_to_the_sample():
    together = Randomness(3, 7, ["a", "b", "c"]).normal("noise", (4, 2))
    alone = Randomness(3, 7, ["b"]).normal("noise", (4, 2))
    assert torch.equal(together[1:2], alone)
    for other in (
        Randomness(4, 7, ["b"]).normal("noise", (4, 2)),
        Randomness(3, 8, ["b"]).normal("noise", (4, 2)),
        Randomness(3, 7, ["b"]).normal("time", (4, 2)),
    ):
        assert not torch.equal(other, alone)


def test_noise_is_standard_normal_and_integers_are_uniform():
    random = Randomness(0, 0, [str(i) for i in range(400)])
    noise = random.normal("noise", (64,))
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    counts = random.integer("time", 4, (16,)).flatten().bincount(minlength=4)
    assert len(counts) == 4 and (counts - 1600).abs().max() < 200
    exits = [Randomness(0, step, ["x"]).shared_integer("exit", 3) for step in range(300)]
    assert {0, 1, 2} == set(exits) and 60 < exits.count(1) < 140
