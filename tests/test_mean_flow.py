"""TF-MeanFlow: its times, and its loss where the mean velocity is known."""

import pytest
import torch
from test_oracle import Velocity, oracle, real

from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.tf_mean_flow import TFMeanFlow

pytestmark = pytest.mark.filterwarnings("ignore:.*self.log.*trainer. reference")
SETTINGS = {
    "guidance": 1.0, "tangent_step": 1e-3, "weight_floor": 1e-3, "r_equals_t": 0.25,
    "r_is_zero": 0.25, "time_mean": -0.8, "time_std": 1.6,
}  # fmt: skip


class Silent(Velocity):
    """The velocity itself, whatever the second time: right where both are equal."""

    def with_second_time(self):
        return self

    def forward(self, x, t, text, *, until=None, **rest):
        self.until = torch.zeros_like(t) if until is None else until
        return super().forward(x, t, text, **rest)


class MeanVelocity(Silent):
    """x_r = (1 - r) m + d(r) / d(t) (x_t - (1 - t) m), so u = (x_t - x_r) / (t - r)."""

    def answer(self, x, t, m, q2):
        r = self.until[:, :, None, None, None].double()
        d_r, d_t = (((1 - s) ** 2 * q2 + s**2).sqrt() for s in (r, t.double()))
        end = (1 - r) * m + d_r / d_t * (x - (1 - t.double()) * m)
        mean = (x - end) / (t - r).clamp(min=1e-9)
        return torch.where(t - r > 1e-6, mean, super().answer(x, t, m, q2)).float()


def residual(student, tangent: str) -> float:
    module, seen = oracle(TFMeanFlow, student, teacher=Velocity(), tangent=tangent, **SETTINGS), {}
    module.report = lambda name, value: seen.update({name: value.item()})
    module.training_step(real(), 0)
    return seen["train/loss"]


def test_the_loss_of_the_exact_mean_velocity_vanishes():
    assert residual(MeanVelocity(), "exact") < 1e-9
    assert residual(MeanVelocity(), "central") < 1e-4
    assert residual(MeanVelocity(), "upwind") < 1e-4
    assert residual(Silent(), "exact") > 0.1


def test_times_are_ordered_and_shared_by_a_clip():
    module = oracle(TFMeanFlow, Silent(), teacher=Velocity(), tangent="exact", **SETTINGS)
    draws = Randomness(0, 0, [str(n) for n in range(4000)])
    t, r = module.draw_spans(draws, module.r_equals_t, module.r_is_zero)
    assert (r <= t).all() and (r >= 0).all() and (t < 1).all()
    assert torch.equal(t, t[:, :1].expand_as(t)) and torch.equal(r, r[:, :1].expand_as(r))
    for share in ((r == t)[:, 0], (r == 0)[:, 0]):
        assert abs(share.double().mean() - 0.25) < 0.03
    between = (r < t)[:, 0] & (r > 0)[:, 0]
    larger = -0.8 + 1.6 / torch.pi**0.5  # of two normals, in the mean
    assert abs(torch.special.logit(t[between, 0]).mean() - larger) < 0.15
