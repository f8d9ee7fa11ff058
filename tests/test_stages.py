"""Every regression stage's training step against its equation, written out with loops.

The distribution matching stages are in test_distribution_matching.py, training under Lightning in
test_stage_training.py.
"""

import math

import pytest
import torch
from minimal import (
    PARTITIONS,
    SHAPE,
    SIZES,
    assert_same_gradients,
    batch,
    beside_clean,
    beside_noisy,
    grid,
    network,
    stage,
    together,
    train,
    warped,
)

from lightning_modules.ar_diffusion import ARDiffusion
from lightning_modules.asymmetric_dmd import AsymmetricDMD
from lightning_modules.bidirectional import Bidirectional
from lightning_modules.causal_cd import CausalCD
from lightning_modules.causal_dmd import CausalDMD
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion_forcing import DiffusionForcing
from lightning_modules.ode_regression import CausalODE, SelfForcingODE
from lightning_modules.teacher_forcing import TeacherForcing

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.filterwarnings("ignore:.*self.log.*trainer. reference"),
]

FLOW = {"text_dropout": 0.5, "intervals": 4, "guidance": 1.0}
TIMES = [1.0, 0.9, 0.75, 0.4]
CD = {"intervals": 6, "solver": "euler", "guidance": 3.0, "decay": 0.99, "terminal_pair": True}


def draws(module, data) -> Randomness:
    return Randomness(f"{module.chapter}/1", 0, data["key"])


def bell(t: float) -> float:
    """Wan's weight: exp(-2 (t - 1/2)^2) less its least value, with mean 1 over 1000 grid points."""
    values = [math.exp(-2 * (s - 0.5) ** 2) for s in grid(1000)[:-1]]
    lowest = min(values)
    return (math.exp(-2 * (t - 0.5) ** 2) - lowest) / (sum(v - lowest for v in values) / 1000)


def frames_of_blocks(per_block, sizes) -> list:
    return [value for value, size in zip(per_block, sizes, strict=True) for _ in range(size)]


# -- flow matching -------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", PARTITIONS, ids=str)
@pytest.mark.parametrize("kind", [Bidirectional, TeacherForcing, DiffusionForcing])
@pytest.mark.parametrize("weight", ["bell", "none"])
def test_flow_matching(kind, blocks, weight):
    module = stage(kind, blocks, loss_weight=weight, **FLOW)
    data, sizes = batch(4), SIZES[str(blocks)]
    random, net = draws(module, data), module.student
    noise, dropped = random.normal("noise", SHAPE), random.uniform("text_dropout") < 0.5
    assert dropped.any() and not dropped.all()

    loss = 0.0
    for row in range(4):
        if kind is Bidirectional:
            times = [warped(random.uniform("time", (1,))[row, 0].item())] * 4
        else:
            drawn = random.uniform("time", (len(sizes),))[row].tolist()
            times = frames_of_blocks([warped(u) for u in drawn], sizes)
        x0, eps, t = data["latents"][row], noise[row], torch.tensor(times)
        text = module.negative if dropped[row] else data["text"][row]
        x = torch.stack([(1 - t[f]) * x0[f] + t[f] * eps[f] for f in range(4)])
        if kind is Bidirectional:
            v = together(net, x, t, text)
        elif kind is TeacherForcing:
            v = beside_clean(net, x, t, text, x0, sizes)
        else:
            v = beside_noisy(net, x, t, text, sizes)
        for f in range(4):
            w = bell(times[f]) if weight == "bell" else 1
            loss = loss + w * (v[f] - (eps[f] - x0[f])).square().mean() / 16

    found = module.training_step(data, 0)
    torch.testing.assert_close(found, loss, rtol=1e-4, atol=1e-6)
    found.backward()
    assert_same_gradients(net, loss)


# -- regression of a teacher's ODE ---------------------------------------------------------------


@pytest.mark.parametrize("blocks", PARTITIONS, ids=str)
@pytest.mark.parametrize("kind", [CausalODE, SelfForcingODE])
def test_ode_regression(kind, blocks):
    """Causal ODE: one state for all frames, conditioned on the *real* clip; the target is the
    teacher's endpoint. Self Forcing's: a state for each block, conditioned on noisy blocks.
    """
    data, sizes = batch(4, states=4), SIZES[str(blocks)]
    module = stage(kind, blocks, times=TIMES)
    net, random, loss = module.student, draws(module, data), 0.0
    assert kind.past == ("causal" if kind is CausalODE else "bidirectional")

    for row in range(4):
        trajectory, text = data["trajectory"][row], data["text"][row]
        if kind is CausalODE:
            index = [random.integer("time", 4, (1,))[row, 0].item()] * 4
        else:
            drawn = random.integer("time", 4, (len(sizes),))[row].tolist()
            index = frames_of_blocks(drawn, sizes)
        x = torch.stack([trajectory[index[f], f] for f in range(4)])
        t = torch.tensor([TIMES[index[f]] for f in range(4)])
        if kind is CausalODE:
            v = beside_clean(net, x, t, text, data["latents"][row], sizes)
        else:
            v = beside_noisy(net, x, t, text, sizes)
        for f in range(4):
            loss = loss + (x[f] - t[f] * v[f] - trajectory[4, f]).square().mean() / 16

    found = module.training_step(data, 0)
    torch.testing.assert_close(found, loss, rtol=1e-4, atol=1e-6)
    found.backward()
    assert_same_gradients(net, loss)


# -- consistency distillation --------------------------------------------------------------------


def consistency_loss(module, data, pairs: int, intervals: int, sizes):
    """eq. 3 by loops; also which pair each clip drew."""
    random, target = draws(module, data), module.target.module
    k = random.integer("time", pairs, (1,))[:, 0].tolist()
    noise, points, loss = random.normal("noise", SHAPE), grid(intervals), 0.0
    for row, index in enumerate(k):
        x0, text, t, t_next = data["latents"][row], data["text"][row], *points[index : index + 2]
        here, there = torch.full((4,), t), torch.full((4,), t_next)
        x = (1 - t) * x0 + t * noise[row]
        with torch.no_grad():
            conditional = beside_clean(module.teacher, x, here, text, x0, sizes)
            without = beside_clean(module.teacher, x, here, module.negative, x0, sizes)
            v = without + module.guidance * (conditional - without)
            x_next = x + (t_next - t) * v
            end = x_next
            if t_next > 0:
                end = x_next - t_next * beside_clean(target, x_next, there, text, x0, sizes)
        start = x - t * beside_clean(module.student, x, here, text, x0, sizes)
        loss = loss + (start - end).square().mean() / len(k)
    return loss, k


@pytest.mark.parametrize("blocks", PARTITIONS, ids=str)
def test_consistency(blocks):
    data = batch(5)
    module = stage(CausalCD, blocks, teacher=network(2), **CD)
    module.target.reset(network(3))
    loss, drawn = consistency_loss(module, data, 6, 6, SIZES[str(blocks)])
    assert len(set(drawn)) > 2, "several pairs at once"
    found = module.training_step(data, 0)
    torch.testing.assert_close(found, loss, rtol=1e-4, atol=1e-6)
    found.backward()
    assert_same_gradients(module.student, loss)
    assert not any(p.grad is not None for p in module.teacher.parameters())
    assert not any(p.grad is not None for p in module.target.module.parameters())


def test_last_pair_is_anchored_at_the_teachers_end():
    """Wherever theta- points, the pair that reaches t' = 0 asks for the Euler endpoint itself."""
    data = batch(3)
    losses = []
    for seed in (3, 4):
        module = stage(CausalCD, teacher=network(2), **CD | {"intervals": 1})
        module.target.reset(network(seed))
        loss, drawn = consistency_loss(module, data, 1, 1, SIZES["framewise"])
        assert drawn == [0, 0, 0]
        losses.append(module.training_step(data, 0))
        torch.testing.assert_close(losses[-1], loss, rtol=1e-4, atol=1e-6)
    assert torch.equal(*losses)


@pytest.mark.parametrize("terminal", [True, False])
def test_terminal_pair(terminal):
    """The published code never draws it; ours does unless told not to."""
    data, points = batch(64), grid(4)
    module = stage(CausalCD, teacher=network(2), **CD | {"intervals": 4, "terminal_pair": terminal})
    asked = []
    module.student.register_forward_pre_hook(lambda _, args: asked.append(args[1][:, 4:].clone()))
    module.training_step(data, 0)
    lowest = points[3] if terminal else points[2]
    assert asked[0].min().item() == pytest.approx(lowest)
    assert set(asked[0].flatten().tolist()) == {torch.tensor(p).item() for p in points[:4]} - (
        set() if terminal else {torch.tensor(points[3]).item()}
    )


def test_target_follows_the_student_by_its_decay():
    module = stage(CausalCD, teacher=network(2), **CD)
    before = [p.clone() for p in module.target.module.parameters()]
    teacher = [p.clone() for p in module.teacher.parameters()]
    train(module, batch(3), 1)
    for old, own, new in zip(
        before, module.student.parameters(), module.target.module.parameters(), strict=True
    ):
        assert not torch.equal(old, own.detach())
        torch.testing.assert_close(new, 0.99 * old + 0.01 * own.detach())
    assert all(map(torch.equal, teacher, module.teacher.parameters()))
    assert module.evaluated is module.target.module


# -- what all share ------------------------------------------------------------------------------


def test_ar_diffusion_refuses_to_train():
    with pytest.raises(ValueError, match="trains nothing.*fit.steps to 0"):
        stage(ARDiffusion).training_step(batch(1), 0)


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        (Bidirectional, FLOW),
        (TeacherForcing, FLOW),
        (DiffusionForcing, FLOW),
        (CausalODE, {"times": TIMES}),
        (SelfForcingODE, {"times": TIMES}),
        (CausalCD, CD | {"teacher": network(2)}),
    ],
)
def test_chance_belongs_to_the_sample(kind, own):
    """A loss over four clips is the mean over those clips alone: no draw depends on the company,
    and another step or seed draws anew.
    """
    data, module = batch(4, states=4), stage(kind, **own)
    alone = []
    for row in range(4):
        single = {name: value[row : row + 1] for name, value in data.items()}
        alone.append(module.training_step(single, 0))
    torch.testing.assert_close(module.training_step(data, 0), torch.stack(alone).mean())
    other = stage(kind, seed=2, **own).training_step(data, 0)
    assert not torch.isclose(other, module.training_step(data, 0), rtol=1e-3)


def test_sampling_is_a_function_of_the_keys():
    for module in (
        stage(Bidirectional, **FLOW),
        stage(TeacherForcing, **FLOW | {"guidance": 2.0}),
        stage(CausalCD, teacher=network(2), **CD),
    ):
        text = batch(2)["text"]
        first, again = (module.sample(text, ["a", "b"]) for _ in range(2))
        assert torch.equal(first, again) and first.shape == (2, *SHAPE)
        turned = module.sample(text.flip(0), ["b", "a"]).flip(0)
        torch.testing.assert_close(turned, first, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(module.sample(text, ["c", "d"]), first)


def test_chapters_keep_a_students_noise_from_its_teachers():
    arms = {kind.chapter for kind in (CausalODE, SelfForcingODE, CausalCD, CausalDMD)}
    chapters = [Bidirectional.chapter, TeacherForcing.chapter, *arms, AsymmetricDMD.chapter]
    assert len(arms) == 1 and len(set(chapters)) == 4
    data = batch(4)
    stages = [stage(kind, "framewise", **FLOW) for kind in (Bidirectional, TeacherForcing)]
    base, stage1 = (module.randomness(data).normal("noise", SHAPE) for module in stages)
    assert not torch.equal(base, stage1)
