"""bfloat16 training: float32 where an update, an EMA or a time would be rounded away."""

import pytest
import torch
from minimal import batch, network, stage, train

from callbacks.student_ema import StudentEMA
from lightning_modules.asymmetric_dmd import AsymmetricDMD
from lightning_modules.causal_cd import CausalCD
from lightning_modules.networks import Wan
from lightning_modules.networks.wan.precision import to_bfloat16
from lightning_modules.networks.wan.rotary import apply_rope, rope_table
from lightning_modules.teacher_forcing import TeacherForcing

pytestmark = pytest.mark.numeric

RATE = 2e-6  # the published one: three bits below the resolution of a bfloat16 weight of 0.02
CD = {"intervals": 4, "guidance": 2.0, "decay": 0.9, "solver": "euler", "terminal_pair": True}
DMD = {
    "few_steps": 2, "first_few_steps": 2, "guidance": 2.0, "critic_learning_rate": RATE,
    "critic_steps": 1, "t_min": 0.02, "t_max": 0.98,
}  # fmt: skip
STAGES = {
    TeacherForcing: {"text_dropout": 0.0, "intervals": 2, "guidance": 1.0},
    CausalCD: CD,
    AsymmetricDMD: DMD,
}
half = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")


def fitted(kind, steps=4, **settings):
    """A short fit under bf16-mixed, with the weights it began with and an average."""
    roles = {} if kind is TeacherForcing else {"teacher": to_bfloat16(network(2))}
    if kind is AsymmetricDMD:
        roles["critic"] = network(3)
    module = stage(kind, learning_rate=RATE, **STAGES[kind], **roles, **settings)
    before = [p.detach().clone() for p in module.student.parameters()]
    ema = StudentEMA(decay=0.5)
    trainer = train(module, batch(), steps, precision="bf16-mixed", callbacks=[ema])
    return module, before, ema, trainer


@half
@pytest.mark.parametrize("kind", STAGES, ids=lambda kind: kind.__name__)
def test_weights_averages_and_moments_stay_float32_and_move(kind):
    module, before, ema, trainer = fitted(kind)
    shadows = {"average": ema._ema.module}
    if kind is CausalCD:
        shadows["target"] = module.target.module
    for name, net in {"student": module.student, **shadows}.items():
        moved = []
        for parameter, start in zip(net.parameters(), before, strict=True):
            assert parameter.dtype == torch.float32, name
            moved.append((parameter != start).flatten())
        # In bfloat16 an update of 2e-6 moves none but the smallest weights.
        assert torch.cat(moved).float().mean() > 0.9, name
    states = trainer.optimizers[0].state.values()
    moments = [state[key] for state in states for key in ("exp_avg", "exp_avg_sq")]
    assert moments and all(moment.dtype == torch.float32 for moment in moments)


@half
def test_activations_are_bfloat16_and_velocities_float32():
    """What is tested here is on: linear layers compute in bfloat16."""
    seen = {}
    module = stage(TeacherForcing, **STAGES[TeacherForcing])
    block = module.student.blocks[0]
    block.ffn.register_forward_hook(lambda *call: seen.update(ffn=call[2].dtype))
    module.student.register_forward_hook(lambda *call: seen.update(v=call[2].dtype))
    train(module, batch(), 1, precision="bf16-mixed")
    assert seen == {"ffn": torch.bfloat16, "v": torch.float32}


@half
def test_time_is_float32_all_the_way():
    """Levels that bfloat16 cannot tell apart (998.4 and 1000 of 1000) give other modulations."""
    net, seen = network(1), []
    net.condition_embedder.timesteps_proj.register_forward_hook(
        lambda module, given, waves: seen.append((given[0], waves))
    )
    t = torch.tensor([[0.9984, 0.9999]])
    plain = net._embed_time(t, None)
    with torch.autocast("cpu", torch.bfloat16):
        under = net._embed_time(t, None)
    for one, other in zip(plain, under, strict=True):
        assert other.dtype == torch.float32 and torch.equal(one, other)
        assert not torch.equal(other[:, 0], other[:, 1])
    assert all(levels.dtype == waves.dtype == torch.float32 for levels, waves in seen)
    module = stage(TeacherForcing, **STAGES[TeacherForcing])
    given = []
    module.student.register_forward_pre_hook(lambda _, call: given.append(call[1]))
    train(module, batch(), 1, precision="bf16-mixed")
    assert given and all(t.dtype == torch.float32 for t in given)


def test_rotary_tables_are_never_rounded():
    """They are no part of the module, so no cast reaches them, and turning is done in float32."""
    places, device = (0, 20, 999), torch.device("cpu")
    rope_table.cache_clear()
    net = to_bfloat16(network(1))
    assert not dict(net.bfloat16().named_buffers())
    with torch.autocast("cpu", torch.bfloat16):
        rope = rope_table(places, 2, 2, 12, device)
        x = torch.randn(12, 2, 12).bfloat16()
        rotated = apply_rope(x, rope)
    assert rope.dtype == torch.float32
    t_pairs = 12 - 4 * (12 // 6)  # channels that turn with time
    angles = torch.tensor([place * 10_000.0 ** -(2 / t_pairs) for place in places]).double()
    second = rope[:, 0, 1, 0].reshape(3, 4)[:, 0]
    assert (second - angles.cos()).abs().max() < 1e-4  # bfloat16: 2e-3
    turned = torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * torch.view_as_complex(rope)
    assert torch.equal(
        rotated, torch.view_as_real(turned).flatten(-2).bfloat16()
    )  # rounded once, at the end


@half
def test_a_frozen_network_in_bfloat16_answers_the_same_bit_for_bit():
    """Autocast rounds these weights anyway; what it does not round stays float32."""
    torch.manual_seed(0)
    config = {
        "num_attention_heads": 2, "attention_head_dim": 24, "in_channels": 16, "out_channels": 16,
        "text_dim": 32, "ffn_dim": 96, "num_layers": 2,
    }  # fmt: skip
    net = Wan(**config).requires_grad_(False)
    x, t, text = torch.randn(2, 3, 16, 4, 4), torch.rand(2, 3), torch.randn(2, 5, 32)

    def ask():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return net(x, t, text, frames=torch.arange(3))

    before, size = ask(), sum(p.nbytes for p in net.parameters())
    to_bfloat16(net)
    assert torch.equal(ask(), before)
    kept = {name for name, p in net.named_parameters() if p.dtype == torch.float32}
    time = "condition_embedder.time_"
    assert {name for name in kept if name.startswith(time)} == {
        name for name, _ in net.named_parameters() if name.startswith(time)
    }
    assert all("norm" in name or "table" in name or name.startswith(time) for name in kept)
    assert sum(p.nbytes for p in net.parameters()) < 0.75 * size


def test_a_precision_that_rounds_weights_is_refused():
    from experiments.verbs.fit import Training

    for precision in ("bf16-true", "16-true", "16-mixed", "bf16"):
        with pytest.raises(ValueError, match="fit.precision"):
            Training(1, 1, 1.0, precision, 0.0, 0)
