"""The modules of the ablation in closed-form worlds: losses, gradients, ODE end points."""

import math

import pytest
import torch
from closed_form_world import AR1, SWITCHING, batch, log_density_of_noised, network
from minimal import stage
from torch import Tensor, nn

from lightning_modules.asymmetric_dmd import AsymmetricDMD
from lightning_modules.causal_cd import CausalCD
from lightning_modules.causal_dmd import CausalDMD
from lightning_modules.diffusion.flow import SOLVERS, time_grid
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import Past, Solve, rollout
from lightning_modules.networks.closed_form.gaussian_world import GaussianWorld
from lightning_modules.ode_regression import CausalODE
from lightning_modules.tf_dcm import TFdCM
from lightning_modules.tf_mean_flow import TFMeanFlow
from lightning_modules.tf_scm import TFsCM

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.filterwarnings("ignore:.*self.log.*trainer. reference"),
]
LAWS = pytest.mark.parametrize("law", [SWITCHING, AR1], ids=["switching", "ar1"])
F = 4
DMD = {
    "few_steps": 1, "first_few_steps": 1, "guidance": 1.0, "critic_learning_rate": 1e-3,
    "critic_steps": 5, "t_min": 0.02, "t_max": 0.98,
}  # fmt: skip
FAKE = GaussianWorld(
    means=((1.0, 0.2), (-0.6, 1.0)), weights=(0.5, 0.5), spread=0.5, decay=0.8, noise=0.4,
    angle=0.5, frames=F,
)  # fmt: skip


class FlowMap(nn.Module):
    """A perfect Stage 2, ``(x_t - f(x_t)) / t``, plus one number to train.

    On clean context (a call of `forcing.teacher_forcing`) the map is known; asked otherwise, or
    at t = 0 where the map is the identity, it answers as the exact velocity.
    """

    def __init__(self, law: GaussianWorld) -> None:
        super().__init__()
        self.exact, self.law = network(law), law
        self.offset = nn.Parameter(torch.zeros(()))

    def new_cache(self, frames=None):
        return self.exact.new_cache(frames)

    def with_second_time(self):
        return self

    def forward(self, x, t, text, *, frames, visible=None, until=None, **cached) -> Tensor:
        v = self.exact(x, t, text, frames=frames, visible=visible, **cached)
        if until is not None:
            v = self.mean_velocity(x[:, :F], x[:, F:], t[:, F:], until[:, F:], v)
        elif len(frames) == 2 * F:
            clean, x_t, level = x[:, :F], x[:, F:], t[:, F:]
            end = self.law.flow_map(*(part.double() for part in (x_t.flatten(2), level)),
                                    clean.flatten(2).double()).float()  # fmt: skip
            slope = (x_t - end.view_as(x_t)) / level.clamp(min=1e-9)[..., None, None, None]
            v = torch.where(level[..., None, None, None] > 0, slope, v)
        return v + self.offset

    def mean_velocity(self, clean, x_t, t, r, v) -> Tensor:
        """``(x_t - x_r) / (t - r)``: the ODE by Runge-Kutta in t, and not by the law's own map."""
        law = self.law.conditional(clean.flatten(2).double())
        x, level, span = x_t.flatten(2).double(), t.double(), (t - r).double()
        step = -span / 64
        for number in range(64):
            s, h = level + number * step, step[..., None]
            first = law.velocity(x, s)
            second = law.velocity(x + h / 2 * first, s + step / 2)
            third = law.velocity(x + h / 2 * second, s + step / 2)
            fourth = law.velocity(x + h * third, s + step)
            x = x + h / 6 * (first + 2 * second + 2 * third + fourth)
        mean = (x_t.flatten(2) - x) / span.clamp(min=1e-9)[..., None]
        return torch.where(span[..., None, None, None] > 1e-6, mean.view_as(v), v.double()).float()


class Silent(FlowMap):
    """The teacher's velocity itself, whatever the second time."""

    def forward(self, *args, until=None, **how) -> Tensor:
        return self.exact(*args, **how)


def module(kind, law, student, **own):
    shape = {"clip_shape": [F, 2, 1, 1], "negative": torch.zeros(1, law.components), "shift": 2.0}
    return stage(kind, student=student, **shape, **own)


@LAWS
@pytest.mark.parametrize("solver", SOLVERS)
def test_consistency_loss_of_the_exact_flow_map_vanishes(law, solver):
    """A step is wrong by h^(p+1), so the loss by h^(2p+2): a halved step tells the order."""
    losses = []
    for intervals in (16, 32, 64):
        asked = module(
            CausalCD, law, FlowMap(law), teacher=network(law), intervals=intervals, solver=solver,
            guidance=1.0, decay=0.99, terminal_pair=True,
        )  # fmt: skip
        losses.append(asked.training_step(batch(law, 64), 0).item())
    least = {"euler": 8, "heun": 20}[solver]
    assert losses[0] / losses[1] > least and losses[-1] < 1e-5, losses
    naive = module(
        CausalCD, law, network(law), teacher=network(law), intervals=64, solver=solver,
        guidance=1.0, decay=0.99, terminal_pair=True,
    )  # fmt: skip
    assert naive.training_step(batch(law, 64), 0).item() > 30 * losses[-1]


TIMES = {"time_mean": -0.8, "time_std": 1.6}
SCM = TIMES | {"tangent_warmup_steps": 0, "tangent_floor": 0.1}
MEAN_FLOW = TIMES | {"weight_floor": 1e-3, "r_equals_t": 0.25, "r_is_zero": 0.25}


@LAWS
@pytest.mark.parametrize(
    ("kind", "own", "width", "values", "order"),
    [
        (TFdCM, {"time_shift": 3.0}, "intervals", (24, 48, 96), 4),
        (TFsCM, SCM | {"tangent": "central"}, "tangent_step", (0.02, 0.01, 0.005), 4),
        (TFsCM, SCM | {"tangent": "upwind"}, "tangent_step", (0.02, 0.01, 0.005), 2),
        (TFMeanFlow, MEAN_FLOW | {"tangent": "upwind"}, "tangent_step", (0.02, 0.01, 0.005), 2),
    ],
    ids=["dcm", "scm-central", "scm-upwind", "mean_flow"],
)
def test_the_objectives_of_causal_rcm_vanish_at_the_exact_flow_map(
    law, kind, own, width, values, order
):
    """A difference of width h is wrong by h or h^2, a step of the teacher by h^2: so the loss falls
    by h^2 or h^4, and at the teacher, where it is no error of a difference, it does not.
    """

    def loss(student, value) -> float:
        given = own | {width: value, "guidance": 1.0, "teacher": network(law)}
        asked, seen = module(kind, law, student, **given), {}
        asked.report = lambda name, number: seen.update({name: number.item()})
        asked.training_step(batch(law, 64), 0)
        return seen["train/loss"]

    losses, naive = [loss(FlowMap(law), value) for value in values], loss(Silent(law), values[-1])
    for coarse, fine in zip(losses, losses[1:], strict=False):
        assert 0.75 < coarse / fine / 2**order < 1.25, losses
    assert naive > 30 * losses[-1], (losses, naive)


@pytest.fixture(scope="module", params=[SWITCHING, AR1], ids=["switching", "ar1"])
def world(request):
    """A law, clips of it, noise, and where the flow map takes the noise on clean context."""
    law = request.param
    data = batch(law, 64)
    noise = Randomness(5, 0, data["key"]).normal("noise", (F, 2, 1, 1))
    flat, clean = noise.flatten(2).double(), data["latents"].flatten(2).double()
    return law, data, noise, law.flow_map(flat, torch.ones(flat.shape[:2]).double(), clean)


def solved(world, intervals: int, solver: str) -> tuple[Tensor, Solve]:
    """Ends on clean context and what was kept, as the verb `pairs` makes them."""
    law, data, noise, _ = world
    sampler = Solve(time_grid(intervals, 2.0), range(0, intervals + 1, intervals // 4), solver)
    past = Past(network(law), data["text"])
    return rollout(past, noise, (1,) * F, sampler, truth=data["latents"]), sampler


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_the_teachers_ode_ends_on_the_flow_map_with_the_solvers_order(world, solver, order):
    errors = []
    for intervals in (32, 64, 128):
        ends = solved(world, intervals, solver)[0].flatten(2).double()
        errors.append((ends - world[3]).norm(dim=-1).median().item())
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert all(abs(slope - order) < 0.25 for slope in slopes), (errors, slopes)


def test_ode_regression_of_the_exact_flow_map_vanishes(world):
    law, data, _, _ = world
    sampler = solved(world, 48, "heun")[1]
    pairs = data | {"trajectory": torch.cat(sampler.states, 2)}
    times = [sampler.grid[index].item() for index in sampler.keep[:-1]]
    exact, naive = (
        module(CausalODE, law, student, times=times).training_step(pairs, 0).item()
        for student in (FlowMap(law), network(law))
    )
    assert exact < 1e-4 < 1e-2 < naive


def analytic_gradient(x, x_t, t, scores):
    """``(fake - real) / mean|x - real|`` from the two scores: ``x0 = (x_t + t^2 s) / (1 - t)``."""
    level = t[..., None].double()
    fake, real = ((x_t.double() + level**2 * s) / (1 - level) for s in scores)
    scale = (x.double() - real).abs().mean((1, 2), keepdim=True)
    return (fake - real) / scale


def causal_scores(law, x_t, t, clean):
    """Of each noised frame given its true predecessor, by differentiating a torch distribution."""
    mixture = law.conditional(clean.double())
    point, level = x_t.double().requires_grad_(), t[..., None, None].double()
    width = ((1 - level) ** 2 * mixture.std[:, None, None] ** 2 + level**2).sqrt()
    normal = torch.distributions.Normal((1 - level) * mixture.means, width)
    each = normal.log_prob(point[:, :, None]).sum(-1) + mixture.log_weights
    return torch.autograd.grad(each.logsumexp(-1).sum(), point)[0]


def joint_scores(law, x_t, t, clean):
    """Of whole noised clips, from the dense joint."""
    point = x_t.double().requires_grad_()
    logs = [log_density_of_noised(law, p, s.double()) for p, s in zip(point, t, strict=True)]
    return torch.autograd.grad(torch.stack(logs).sum(), point)[0]


@pytest.mark.parametrize(
    ("kind", "scores"), [(CausalDMD, causal_scores), (AsymmetricDMD, joint_scores)]
)
def test_distribution_matching_gradient_is_the_analytic_score_difference(kind, scores):
    asked = module(
        kind, SWITCHING, FlowMap(SWITCHING), teacher=network(SWITCHING), critic=network(FAKE), **DMD
    )
    data = batch(SWITCHING, 6)
    random = asked.randomness(data)
    with torch.no_grad():
        x = asked.generate(data, random)
        x_t, t, _ = asked.noised(x, random)
    flat = [part.flatten(2) for part in (x, x_t, data["latents"])]
    pair = [scores(law, flat[1], t, flat[2]) for law in (FAKE, SWITCHING)]
    gradient = analytic_gradient(flat[0], flat[1], t, pair)
    asked.student_loss(data, random).backward()
    # One step from noise: x = noise - (v + offset), so d x / d offset = -1 everywhere.
    expected = -gradient.mean().float()
    torch.testing.assert_close(asked.student.offset.grad, expected, atol=1e-5, rtol=1e-4)
    assert abs(expected) > 1e-3


@LAWS
@pytest.mark.parametrize("kind", [CausalDMD, AsymmetricDMD])
def test_distribution_matching_rests_where_critic_and_teacher_agree(kind, law):
    asked = module(kind, law, FlowMap(law), teacher=network(law), critic=network(law), **DMD)
    asked.student_loss(batch(law, 6), asked.randomness(batch(law, 6))).backward()
    assert asked.student.offset.grad.item() == 0
