"""Alternating updates by one optimizer equal those of two AdamW, also across a resume."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from minimal import SaveAndStop, batch, network, stage, train
from torch import nn

from lightning_modules.asymmetric_dmd import AsymmetricDMD
from lightning_modules.causal_dmd import CausalDMD
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.training.gated_adamw import GatedAdamW

DMD = {
    "few_steps": 2,
    "first_few_steps": 2,
    "guidance": 1.5,
    "learning_rate": 3e-3,
    "critic_learning_rate": 5e-3,
    "critic_steps": 5,
    "t_min": 0.02,
    "t_max": 0.98,
}
CLIP = 0.05  # far below the gradients' norms, so that clipping matters


def made(kind=AsymmetricDMD, **own):
    return stage(kind, **DMD | {"teacher": network(2), "critic": network(3)} | own)


def copies(net: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_waiting_group_is_left_alone():
    """Even with gradients left over: no decay, no momentum, no step count."""
    nets = [nn.Linear(3, 3), nn.Linear(3, 3)]
    twins = [nn.Linear(3, 3), nn.Linear(3, 3)]
    for net, twin in zip(nets, twins, strict=True):
        twin.load_state_dict(net.state_dict())
    settings = {"lr": 0.1, "betas": (0.9, 0.999), "weight_decay": 0.3, "fused": True}
    gated = GatedAdamW([{"params": net.parameters()} for net in nets], **settings)
    apart = [torch.optim.AdamW(twin.parameters(), **settings) for twin in twins]
    for step in range(12):
        turn = step % 3 == 0
        gated.param_groups[0]["active"], gated.param_groups[1]["active"] = turn, not turn
        for net, twin, own in zip(nets, twins, [turn, not turn], strict=True):
            for p, q in zip(net.parameters(), twin.parameters(), strict=True):
                p.grad = torch.randn_like(p)  # the waiting one's is stale and must not be used
                q.grad = p.grad.clone() if own else None
        gated.step()
        apart[not turn].step()
        for net, twin in zip(nets, twins, strict=True):
            assert same(copies(net), copies(twin)), step
    assert len(gated.param_groups) == 2


def test_closure_runs_before_the_step_with_all_groups_in_place():
    net = nn.Linear(2, 2)
    gated = GatedAdamW([{"params": [net.weight]}, {"params": [net.bias], "active": False}], lr=0.1)
    seen = []

    def closure():
        seen.append(len(gated.param_groups))
        gated.zero_grad()
        loss = net(torch.ones(2)).sum()
        loss.backward()
        return loss

    bias, weight = net.bias.clone(), net.weight.clone()
    assert gated.step(closure) is not None and seen == [2]
    assert torch.equal(net.bias, bias) and not torch.equal(net.weight, weight)


def by_hand(kind, data, steps: int):
    """The same training with two independent AdamW, requires_grad, and torch's clipping."""
    module = made(kind)
    nets = {"student": module.student, "critic": module.critic}
    settings = {"betas": (0.9, 0.999), "weight_decay": 0.01, "fused": True}
    rates = {"student": 3e-3, "critic": 5e-3}
    optimizers = {
        name: torch.optim.AdamW(net.parameters(), lr=rates[name], **settings)
        for name, net in nets.items()
    }
    module.log = lambda *_, **__: None
    for step in range(steps):
        random = Randomness(f"{module.chapter}/{module.seed}", step, data["key"])
        name = "student" if step % 6 == 0 else "critic"
        losses = {"student": module.student_loss, "critic": module.fake_score_loss}
        loss = losses[name](data, random)
        optimizers[name].zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(nets[name].parameters(), CLIP)
        assert norm > CLIP
        optimizers[name].step()
    return module


@pytest.mark.parametrize("kind", [AsymmetricDMD, CausalDMD])
def test_training_equals_two_independent_adamw(kind):
    data = batch(3)
    module = made(kind)
    trainer = train(module, data, 14, gradient_clip_val=CLIP)
    assert trainer.global_step == 14, "a step is a step, whoever moves"
    twin = by_hand(kind, data, 14)
    assert same(copies(module.student), copies(twin.student))
    assert same(copies(module.critic), copies(twin.critic))


class Watch(Callback):
    """Who moved in each step, and who was meant to."""

    def __init__(self) -> None:
        self.moved: list[str] = []
        self.active: list[str] = []

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        self.before = {name: copies(net) for name, net in self.nets(module)}

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        moved = [n for n, net in self.nets(module) if not same(self.before[n], copies(net))]
        self.moved.append("+".join(moved))
        groups = trainer.optimizers[0].param_groups
        self.active.append("+".join(group["name"] for group in groups if group["active"]))

    @staticmethod
    def nets(module):
        roles = ("student", "critic", "teacher")
        return [(role, getattr(module, role)) for role in roles]


def test_one_moves_at_a_time():
    watch, module = Watch(), made()
    train(module, batch(2), 13, callbacks=[watch])
    assert watch.moved == ["student", *["critic"] * 5, "student", *["critic"] * 5, "student"]
    assert watch.active == watch.moved, "the optimizer is told, and does not go by gradients alone"
    assert all(p.requires_grad for p in [*module.student.parameters(), *module.critic.parameters()])
    assert not any(p.requires_grad for p in module.teacher.parameters())


@pytest.mark.parametrize("stop", [1, 6, 9])
def test_resumed_inside_a_round(tmp_path, stop):
    whole, watch = made(), Watch()
    train(whole, batch(2), 14, callbacks=[watch])

    last = SaveAndStop(tmp_path / "last.ckpt", stop)
    assert train(made(), batch(2), 14, callbacks=[last]).global_step == stop
    second, rest = made(), Watch()
    trainer = train(second, batch(2), 14, resume=tmp_path / "last.ckpt", callbacks=[rest])
    assert trainer.global_step == 14 and rest.moved == watch.moved[stop:]
    assert same(copies(second.student), copies(whole.student))
    assert same(copies(second.critic), copies(whole.critic))


def test_every_entry_shows_the_last_turn_of_both_networks(tmp_path):
    """The student's turns (0, 6, 12, ...) never fall on an entry's own step (9, 19, 29)."""
    from lightning.pytorch.loggers import CSVLogger

    module, shown, seen = made(), {}, []
    losses = {"student": "train/loss", "critic": "train/critic_loss"}

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
            shown["student" if module.student_updated else "critic"] = outputs["loss"].item()
            entry = trainer.logged_metrics
            if (index + 1) % 10 == 0:
                assert entry[losses["critic"]].item() == pytest.approx(shown["critic"])
                seen.append(entry[losses["student"]].item())

    logger = CSVLogger(tmp_path)
    log = module.log
    calls = []
    module.log = lambda name, *args, **how: (calls.append(name), log(name, *args, **how))
    train(module, batch(2), 30, logger=logger, log_every_n_steps=10, callbacks=[Watch()])
    assert len(set(seen)) == 3, "a student's turn between any two entries"
    assert calls.count(losses["student"]) == 3 and calls.count(losses["critic"]) == 15
