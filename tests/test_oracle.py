"""AR(1) Gaussian frames, where velocity and flow map are known: the values of all losses.

    x^i = a x^{i-1} + sqrt(1 - a^2) z          given the past, x0^i ~ N(m, q^2)
    m = a x^{i-1}, q^2 = 1 - a^2               (first frame: m = 0, q = 1)
    d(t)^2 = (1 - t)^2 q^2 + t^2
    v(x, t) = (t - (1 - t) q^2) / d^2 (x - (1 - t) m) - m
    f(x, t) = m + q (x - (1 - t) m) / d        the end of the ODE through (x, t)

`Velocity` predicts v, as a perfect Stage 1 would; `FlowMap` predicts (x - f) / t, as a perfect
Stage 2 would. Both keep the network contract, in parallel and with a cache.
"""

from types import SimpleNamespace

import pytest
import torch
from minimal import draw, stage
from torch import Tensor, nn

from lightning_modules.asymmetric_dmd import AsymmetricDMD
from lightning_modules.causal_cd import CausalCD
from lightning_modules.causal_dmd import CausalDMD
from lightning_modules.diffusion.flow import time_grid
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import Past, Solve, rollout
from lightning_modules.ode_regression import CausalODE
from lightning_modules.tf_dcm import TFdCM
from lightning_modules.tf_scm import TFsCM

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.filterwarnings("ignore:.*self.log.*trainer. reference"),
]
A = 0.8
SHAPE = (4, 1, 2, 2)
CLIPS = 256
DMD = {
    "few_steps": 2,
    "first_few_steps": 2,
    "guidance": 1.0,
    "critic_learning_rate": 1e-3,
    "critic_steps": 5,
    "t_min": 0.02,
    "t_max": 0.98,
}


class Velocity(nn.Module):
    """Frames apart by one; a frame looks at the clean frame before it, in the call or the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))  # something to train, zero when exact

    def new_cache(self) -> dict[int, Tensor]:
        return {}

    def forward(
        self, x, t, text, *, frames, visible=None, cache=None, write_cache=False, predicted=None
    ):
        places, before = frames.tolist(), []
        for row, place in enumerate(places):
            sees = [key for key in range(len(places)) if visible is None or visible[row, key]]
            last = [key for key in sees if places[key] == place - 1]
            if cache and place - 1 in cache:
                before.append(cache[place - 1])
            else:
                before.append(x[:, last[0]] if last else torch.zeros_like(x[:, 0]))
        if write_cache:
            cache |= {place: x[:, row] for row, place in enumerate(places)}
        m = A * torch.stack(before, 1)
        q2 = torch.tensor([1.0 if place == 0 else 1 - A**2 for place in places])
        v = self.answer(x, t[:, :, None, None, None], m, q2[:, None, None, None]) + self.offset
        return v if predicted is None else v[:, len(places) - predicted :]

    def answer(self, x, t, m, q2):
        d2 = (1 - t) ** 2 * q2 + t**2
        return (t - (1 - t) * q2) / d2 * (x - (1 - t) * m) - m


class FlowMap(Velocity):
    def answer(self, x, t, m, q2):
        d = ((1 - t) ** 2 * q2 + t**2).sqrt()
        end = m + q2.sqrt() * (x - (1 - t) * m) / d
        return torch.where(t > 0, (x - end) / t.clamp(min=1e-9), super().answer(x, t, m, q2))


def real(count=CLIPS) -> dict:
    frames = [draw(0, count, *SHAPE[1:])]
    for number in range(1, SHAPE[0]):
        frames.append(A * frames[-1] + (1 - A**2) ** 0.5 * draw(number, count, *SHAPE[1:]))
    keys = [f"clip-{number}" for number in range(count)]
    return {"key": keys, "latents": torch.stack(frames, 1), "text": torch.zeros(count, 1, 1)}


def oracle(kind, student=None, **own):
    shape = {"clip_shape": list(SHAPE), "negative": torch.zeros(1, 1), "shift": 2.0}
    return stage(kind, student=student or FlowMap(), **shape, **own)


def consistency(intervals: int, student: nn.Module, steps: int = 1) -> float:
    module = oracle(
        CausalCD, student, teacher=Velocity(), intervals=intervals, solver="euler", guidance=1.0,
        decay=0.99, terminal_pair=True, steps_per_link=steps,
    )  # fmt: skip
    return module.training_step(real(), 0).item()


def test_consistency_loss_of_the_exact_flow_map_vanishes():
    """An Euler step is wrong by h^2, so the loss by h^4; the velocity's own only by h^2."""
    exact = [consistency(n, FlowMap()) for n in (16, 32, 64)]
    naive = [consistency(n, Velocity()) for n in (16, 32, 64)]
    for coarse, fine in zip(exact, exact[1:], strict=False):
        assert 10 < coarse / fine < 24, f"order 4 halves to a sixteenth: {exact}"
    for coarse, fine in zip(naive, naive[1:], strict=False):
        assert 2.5 < coarse / fine < 6, f"order 2 halves to a quarter: {naive}"
    assert exact[-1] < 1e-6 < naive[-1]


def test_steps_within_a_link_are_as_exact_as_the_solver():
    """Over 4 links of n steps the end point of a link is off by 1 / n, so the loss by 1 / n^2."""
    losses = [consistency(4 * n, FlowMap(), steps=n) for n in (8, 16, 32)]
    for coarse, fine in zip(losses, losses[1:], strict=False):
        assert 3 < coarse / fine < 5, losses


@pytest.mark.parametrize("terminal", [True, False])
def test_links_join_grid_points_of_the_teacher(terminal):
    module = oracle(CausalCD, teacher=Velocity(), intervals=8, solver="euler", guidance=1.0,
                    decay=0.9, terminal_pair=terminal, steps_per_link=4)  # fmt: skip
    asked = {"student": [], "target": [], "teacher": []}
    for role, network in module.networks().items():
        network.register_forward_pre_hook(lambda _, args, role=role: asked[role].append(args[1]))
    module.training_step(real(64), 0)
    grid, links = time_grid(8, 2.0).float(), [(0, 4), (4, 8)] if terminal else [(0, 4)]
    firsts = {grid[first].item() for first, _ in links}
    for clip in range(64):
        first = asked["student"][0][clip, -1].item()
        k = grid.tolist().index(first)
        assert first in firsts
        assert [t[clip, -1].item() for t in asked["teacher"]] == grid[k : k + 4].tolist()
        assert asked["target"][0][clip, -1].item() == grid[k + 4].item()
    assert {t.item() for t in asked["student"][0][:, -1]} == firsts


def test_links_that_do_not_fit_the_grid_are_refused():
    with pytest.raises(ValueError, match="steps_per_link: 3 does not divide the 8"):
        oracle(CausalCD, teacher=Velocity(), intervals=8, solver="euler", guidance=1.0,
               decay=0.9, terminal_pair=True, steps_per_link=3)  # fmt: skip


SCM = {
    "guidance": 1.0, "tangent_step": 1e-3, "tangent_warmup_steps": 0, "tangent_floor": 0.1,
    "time_mean": -0.8, "time_std": 1.6,
}  # fmt: skip


def change_along_the_ode(student: nn.Module, tangent: str) -> float:
    """Mean square of d/dt G along the teacher's ODE."""
    module, seen = oracle(TFsCM, student, teacher=Velocity(), tangent=tangent, **SCM), {}
    module.report = lambda name, value: seen.update({name: value.item()})
    module.training_step(real(), 0)
    return seen["train/loss"]


def test_continuous_consistency_loss_of_the_exact_flow_map_vanishes():
    assert change_along_the_ode(FlowMap(), "exact") < 1e-9
    assert change_along_the_ode(FlowMap(), "central") < 1e-4
    assert all(change_along_the_ode(Velocity(), tangent) > 0.1 for tangent in ("exact", "central"))


def test_continuous_consistency_moves_each_clip_by_its_normalised_change():
    """The gradient in the student's velocity is -2 g / n, g = h / (rms(h) + c) clip by clip."""
    module, data = oracle(TFsCM, Velocity(), teacher=FlowMap(), tangent="central", **SCM), real(8)
    grads, seen = [], []
    velocity = module.velocity

    def watched(net, *args):
        v = velocity(net, *args)
        if torch.is_grad_enabled():
            v.register_hook(grads.append)
        seen.append(v.detach())
        return v

    module.velocity = watched
    module.training_step(data, 0).backward()
    g = -grads[0] * grads[0].numel() / 2
    now, teacher, ahead, behind = seen
    t = torch.sigmoid(-0.8 + 1.6 * module.randomness(data).normal("time", (1,)))
    t = t[:, :, None, None, None]
    h = teacher - now - t * (ahead - behind) / 2e-3
    rms = h.flatten(1).square().mean(1).sqrt()
    expected = h / (rms + 0.1)[:, None, None, None, None]
    torch.testing.assert_close(g, expected, rtol=2e-2, atol=2e-2)


def test_tangent_warmup_rises_to_one():
    module = oracle(
        TFsCM, teacher=Velocity(), tangent="upwind", **SCM | {"tangent_warmup_steps": 4}
    )
    found = []
    for step in range(6):
        module.trainer = SimpleNamespace(global_step=step)
        found.append(module.warmed_up())
    assert found == [0, 0.25, 0.5, 0.75, 1, 1]


def discrete_consistency(intervals: int, student: nn.Module) -> float:
    module = oracle(TFdCM, student, teacher=Velocity(), guidance=1.0, intervals=intervals,
                    time_shift=3.0)  # fmt: skip
    return module.training_step(real(), 0).item()


def test_discrete_consistency_loss_of_the_exact_flow_map_vanishes():
    """An Euler step is wrong by h^2, so the loss by h^4; the velocity's own only by h^2."""
    exact = [discrete_consistency(n, FlowMap()) for n in (24, 48, 96)]
    naive = [discrete_consistency(n, Velocity()) for n in (24, 48, 96)]
    for coarse, fine in zip(exact, exact[1:], strict=False):
        assert 8 < coarse / fine < 24, exact
    for coarse, fine in zip(naive, naive[1:], strict=False):
        assert 2.5 < coarse / fine < 6, naive
    assert exact[-1] < 1e-6 < naive[-1]


def test_times_of_discrete_consistency_reach_both_ends():
    """t in (s(1/N), 1], t' one interval lower, down to 0."""
    module = oracle(TFdCM, teacher=Velocity(), guidance=1.0, intervals=4, time_shift=3.0)
    asked = []
    module.student.register_forward_pre_hook(lambda _, args: asked.append(args[1][:, -1]))
    module.training_step(real(2000), 0)
    t_next, t = asked
    u, u_next = (t / (3 - 2 * t)), (t_next / (3 - 2 * t_next))  # shift undone
    torch.testing.assert_close(u - u_next, torch.full_like(u, 1 / 4), atol=1e-5, rtol=0)
    assert u.min() < 0.26 and u.max() > 0.99 and u_next.min() >= 0


def ode_pairs(intervals: int, keep: int) -> dict:
    """Trajectories of the teacher on clean context, as the verb `pairs` makes them."""
    data, grid = real(), time_grid(intervals, 2.0)
    kept = range(0, intervals + 1, intervals // keep)
    solver, noise = Solve(grid, kept), Randomness(5, 0, data["key"]).normal("noise", SHAPE)
    rollout(Past(Velocity(), data["text"]), noise, (1,) * 4, solver, truth=data["latents"])
    times = [grid[index].item() for index in kept[:-1]]
    return data | {"trajectory": torch.cat(solver.states, 2), "times": times}


def test_ode_regression_of_the_exact_flow_map_vanishes():
    """The teacher's Euler ODE ends off by h, so the loss falls by h^2."""
    losses = []
    for intervals in (12, 24, 48):
        data = ode_pairs(intervals, 4)
        module = oracle(CausalODE, times=data.pop("times"))
        losses.append(module.training_step(data, 0).item())
    for coarse, fine in zip(losses, losses[1:], strict=False):
        assert 2.8 < coarse / fine < 5.5, losses
    data = ode_pairs(48, 4)
    naive = oracle(CausalODE, Velocity(), times=data.pop("times")).training_step(data, 0).item()
    assert losses[-1] < 1e-3 < 1e-2 < naive


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_exact_flow_map_samples_the_world_in_few_steps(steps):
    module = oracle(CausalCD, teacher=Velocity(), intervals=4, solver="euler", guidance=1.0,
                    decay=0.9, terminal_pair=True)  # fmt: skip
    module.few_steps = module.first_few_steps = steps
    keys = [f"new-{number}" for number in range(2000)]
    clip = module.sample(torch.zeros(2000, 1, 1), keys)
    flat = clip.transpose(0, 1).reshape(4, -1)
    lag = torch.tensor([[A ** abs(i - j) for j in range(4)] for i in range(4)])
    torch.testing.assert_close(torch.cov(flat), lag, atol=0.06, rtol=0)


@pytest.mark.parametrize("kind", [AsymmetricDMD, CausalDMD])
def test_distribution_matching_is_at_rest_where_the_distributions_agree(kind):
    module = oracle(kind, teacher=Velocity(), critic=Velocity(), **DMD)
    loss = module.training_step(real(32), 0)
    loss.backward()
    assert module.student.offset.grad.item() == 0


def test_distribution_matching_pulls_the_student_back():
    """The student's clips stand too low (their velocity is off by 0.5); a critic that knows it
    tells. In closed form: on clean context, real = N(m, q^2) and fake = N(m - 0.5, q^2).
    """

    class Lower(Velocity):
        def answer(self, x, t, m, q2):
            return super().answer(x, t, m - 0.5, q2)

    student = FlowMap()
    student.offset.data.fill_(0.5)
    data = real(32)
    module = oracle(CausalDMD, student, teacher=Velocity(), critic=Lower(), **DMD)
    module.training_step(data, 0).backward()
    assert student.offset.grad.item() > 0, "descent lowers the velocity, which lifts the clips"
