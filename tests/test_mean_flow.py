"""TF-MeanFlow: its times, its loss where the mean velocity is known, and the same loss by loops."""

import pytest
import torch
from minimal import (
    PARTITIONS,
    SHAPE,
    SIZES,
    assert_same_gradients,
    batch,
    beside_clean,
    blocks_of,
    conditioned,
    network,
    stage,
)
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
    t, r = module.draw_times(Randomness(0, 0, [str(n) for n in range(4000)]))
    assert (r <= t).all() and (r >= 0).all() and (t < 1).all()
    assert torch.equal(t, t[:, :1].expand_as(t)) and torch.equal(r, r[:, :1].expand_as(r))
    for share in ((r == t)[:, 0], (r == 0)[:, 0]):
        assert abs(share.double().mean() - 0.25) < 0.03
    between = (r < t)[:, 0] & (r > 0)[:, 0]
    larger = -0.8 + 1.6 / torch.pi**0.5  # of two normals, in the mean
    assert abs(torch.special.logit(t[between, 0]).mean() - larger) < 0.15


@pytest.mark.parametrize("blocks", PARTITIONS, ids=str)
def test_the_loss_is_that_of_a_loop_over_clips_and_blocks(blocks):
    own = SETTINGS | {"guidance": 2.0, "tangent_step": 0.02}
    student, data = network(1).with_second_time(), batch(4)
    torch.nn.init.normal_(student.span_embedder.linear_2.weight, std=0.2)
    module = stage(TFMeanFlow, blocks, student=student, teacher=network(2), tangent="upwind", **own)
    loss = module.training_step(data, 0)
    loss.backward()
    random, sizes = module.randomness(data), SIZES[str(blocks)]
    eps, times = random.normal("noise", SHAPE), module.draw_times(random)

    def u(x, t, r, text, clean):
        parts = []
        for block in blocks_of(sizes):
            until = torch.cat([torch.zeros(block.start), r[block]])[None]

            def net(*args, until=until, **how):
                return student(*args, until=until, **how)

            zero = torch.zeros(len(x))
            parts.append(conditioned(net, block, x, t, text, clean, zero, sizes))
        return torch.cat(parts)

    losses = []
    for row, (x0, text) in enumerate(zip(data["latents"], data["text"], strict=True)):
        t, r = (each[row] for each in times)
        level = t[0]
        x = (1 - level) * x0 + level * eps[row]
        with torch.no_grad():
            with_prompt, without = (
                beside_clean(module.teacher, x, t, words, x0, sizes)
                for words in (text, module.negative)
            )
            v = without + 2.0 * (with_prompt - without)
            back = min(0.02, level.item())
            behind = u(x - back * v, t - back, torch.minimum(r, t - back), text, x0)
            rate = (u(x, t, r, text, x0) - behind) / back
            target = v - (t - r)[0] * rate
        m = (u(x, t, r, text, x0) - target).square().mean()
        losses.append(m / (m.detach() + 1e-3))
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert_same_gradients(student, expected)
