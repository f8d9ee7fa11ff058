"""Stages under a real Lightning Trainer: they learn, and their checkpoints hold what they should.

Each stage is tested on its objective: flow matching and regression by their loss, consistency
distillation by its error to the end point of the teacher's ODE, distribution matching by the
distribution of its clips. The teachers of the last two are analytic.
"""

import math

import pytest
import torch
from lightning.pytorch import Callback
from minimal import SHAPE, batch, draw, network, stage, train
from torch import nn

from lightning_modules.asymmetric_dmd import AsymmetricDMD
from lightning_modules.bidirectional import Bidirectional
from lightning_modules.causal_cd import CausalCD
from lightning_modules.causal_dmd import CausalDMD
from lightning_modules.causvid_dmd import CausVidDMD
from lightning_modules.diffusion.flow import add_noise, to_x0
from lightning_modules.diffusion.forcing import teacher_forcing
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion_forcing import DiffusionForcing
from lightning_modules.ode_regression import CausalODE, SelfForcingODE
from lightning_modules.sf_dmd import SFDMD
from lightning_modules.teacher_forcing import TeacherForcing
from lightning_modules.tf_dcm import TFdCM
from lightning_modules.tf_mean_flow import TFMeanFlow
from lightning_modules.tf_scm import TFsCM

pytestmark = pytest.mark.numeric

FLOW = {"text_dropout": 0.0, "intervals": 4, "guidance": 1.0}
ODE = {"times": [1.0, 0.9, 0.75, 0.4]}
CD = {"intervals": 8, "solver": "euler", "guidance": 1.0, "decay": 0.9, "terminal_pair": True}
DCM = {"intervals": 8, "time_shift": 3.0, "guidance": 1.0}
TANGENT = {
    "tangent": "upwind",
    "tangent_step": 0.05,
    "time_mean": -0.8,
    "time_std": 1.6,
    "guidance": 1.0,
}
SCM = TANGENT | {"tangent_warmup_steps": 8, "tangent_floor": 0.1}
MEAN_FLOW = TANGENT | {"weight_floor": 1e-3, "r_equals_t": 0.25, "r_is_zero": 0.25}
DMD = {
    "few_steps": 1,
    "first_few_steps": 1,
    "guidance": 1.0,
    "critic_learning_rate": 2e-2,
    "critic_steps": 3,
    "t_min": 0.02,
    "t_max": 0.98,
}
TWO_STEPS = DMD | {"few_steps": 2, "first_few_steps": 2}
SF = TWO_STEPS | {"levels": [], "noisy_from": 1}
MEAN, DEVIATION = 1.5, 0.5


class Gaussian(nn.Module):
    """The exact velocity of independent latents N(MEAN, DEVIATION^2), whatever is visible."""

    def forward(self, x, t, text, *, predicted=None, **_):
        x, t = (part if predicted is None else part[:, -predicted:] for part in (x, t))
        t = t[:, :, None, None, None]
        slope = (t - (1 - t) * DEVIATION**2) / ((1 - t) ** 2 * DEVIATION**2 + t**2)
        return slope * (x - (1 - t) * MEAN) - MEAN


def end_of_ode(x, t):
    """Where the Gaussian's ODE through (x, t) ends."""
    t = t[:, :, None, None, None]
    return MEAN + DEVIATION * (x - (1 - t) * MEAN) / ((1 - t) ** 2 * DEVIATION**2 + t**2).sqrt()


@torch.no_grad()
def mean_loss(module, data, draws: int = 24) -> float:
    """The training loss over many draws of noise and time, the same ones each time."""
    losses = []
    for number in range(draws):
        keys = [f"{key}/{number}" for key in data["key"]]
        losses.append(module.training_step(data | {"key": keys}, 0))
    return torch.stack(losses).mean().item()


@pytest.mark.filterwarnings("ignore:.*self.log.*trainer. reference")
@pytest.mark.parametrize(
    ("kind", "own", "states"),
    [
        (Bidirectional, FLOW, 0),
        (TeacherForcing, FLOW, 0),
        (DiffusionForcing, FLOW, 0),
        (CausalODE, ODE, 4),
        (SelfForcingODE, ODE, 4),
    ],
)
def test_loss_falls(kind, own, states):
    data = batch(2, states)
    student = network(1, std=0.05)
    before = mean_loss(stage(kind, student=student, **own), data)
    module = stage(kind, student=student, **own | {"learning_rate": 2e-2})
    train(module, data, 200)
    after = mean_loss(stage(kind, student=module.student, **own), data)
    assert after < 0.85 * before, (before, after)


@torch.no_grad()
def error_of_jump(net, data) -> float:
    """Mean squared error of the student's jump from x_t, against the exact flow map."""
    random, errors = Randomness(77, 0, data["key"]), []
    for number in range(16):
        t = random.uniform(f"t{number}", (1,)).expand(-1, SHAPE[0])
        x_t = add_noise(data["latents"], random.normal(f"eps{number}", SHAPE), t)
        v = teacher_forcing(net, x_t, t, data["text"], (1,) * 4, clean=data["latents"])
        errors.append((to_x0(x_t, v, t) - end_of_ode(x_t, t)).square().mean())
    return torch.stack(errors).mean().item()


def gaussian_clips(count=8) -> dict:
    return batch(count) | {"latents": MEAN + DEVIATION * draw(5, count, *SHAPE)}


@pytest.mark.parametrize(
    ("kind", "own"), [(CausalCD, CD), (TFdCM, DCM), (TFsCM, SCM), (TFMeanFlow, MEAN_FLOW)]
)
def test_consistency_distillation_learns_the_flow_map(kind, own):
    data = gaussian_clips()
    module = stage(
        kind, student=network(1, 0.05), teacher=Gaussian(), **own | {"learning_rate": 1e-2}
    )
    before = error_of_jump(module.evaluated, data)
    train(module, data, 120)
    after = error_of_jump(module.evaluated, data)
    assert after < 0.35 * before, (before, after)


@pytest.mark.parametrize(
    ("kind", "own"),
    [(AsymmetricDMD, DMD), (CausalDMD, DMD), (SFDMD, SF), (CausVidDMD, TWO_STEPS)],
)
def test_distribution_matching_moves_clips_to_the_teachers(kind, own):
    data = gaussian_clips()
    module = stage(
        kind, student=network(1, 0.05), teacher=Gaussian(), critic=network(3, 0.05),
        **own | {"learning_rate": 1e-2},
    )  # fmt: skip

    @torch.no_grad()
    def mean() -> float:
        return module.generate(data, Randomness(77, 0, data["key"])).mean().item()

    before = abs(mean() - MEAN)
    train(module, data, 160)
    after = abs(mean() - MEAN)
    assert after < 0.35 * before, (before, after)


# -- what a checkpoint holds ---------------------------------------------------------------------


def names(tree, path="") -> list[str]:
    """Every key in a checkpoint."""
    if isinstance(tree, dict):
        return [
            n for key, value in tree.items() for n in [f"{path}{key}", *names(value, f"{key}.")]
        ]
    if isinstance(tree, (list, tuple)):
        return [n for value in tree for n in names(value, path)]
    return []


def tensors(tree) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    branches = tree.values() if isinstance(tree, dict) else tree
    return (
        [t for b in branches for t in tensors(b)] if isinstance(tree, (dict, list, tuple)) else []
    )


class Rates(Callback):
    """The learning rates of every step."""

    def __init__(self) -> None:
        self.seen = []

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        self.seen.append([group["lr"] for group in optimizer.param_groups])


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("constant", lambda u: 1.0),
        ("linear", lambda u: 1 - u),
        ("cosine", lambda u: (1 + math.cos(math.pi * u)) / 2),
    ],
)
def test_learning_rates_follow_their_schedule(schedule, after):
    own = {**DMD, "critic": network(3), "schedule": schedule, "warmup_steps": 2}
    module = stage(AsymmetricDMD, teacher=network(2), **own)
    rates = Rates()
    train(module, batch(2), 8, callbacks=[rates])
    factors = [0, 1 / 2, *(after(step / 6) for step in range(6))]
    both = [(f * module.learning_rate, f * module.critic_learning_rate) for f in factors]
    for seen, expected in zip(rates.seen, both, strict=True):
        assert seen == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "own", "trained"),
    [
        (CausalCD, CD, {"student"}),
        (CausalDMD, DMD | {"critic": network(3)}, {"student", "critic"}),
        (AsymmetricDMD, DMD | {"critic": network(3)}, {"student", "critic"}),
    ],
)
def test_teachers_are_in_no_checkpoint(tmp_path, kind, own, trained):
    module = stage(kind, teacher=network(2), **own)
    trainer = train(module, batch(2), 2)
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in saved["state_dict"]} == trained
    assert not [name for name in names(saved) if "teacher" in name]
    assert not [name for name in module.state_dict() if "teacher" in name]
    assert "teacher" in module.networks(), "but it is counted among the networks"
    weights = sum(p.numel() for p in module.student.parameters())
    copies = 3 * len(trained) + (kind is CausalCD)  # weight and two moments each; theta-
    assert copies * weights <= sum(map(torch.numel, tensors(saved))) < (copies + 0.5) * weights
