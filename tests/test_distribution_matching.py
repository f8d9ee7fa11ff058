"""The DMD stages against their equations, by loops: rollout, exit, scores, guidance, critic."""

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
    blocks_of,
    grid,
    network,
    stage,
    together,
    warped,
)

from lightning_modules.asymmetric_dmd import AsymmetricDMD
from lightning_modules.causal_dmd import CausalDMD
from lightning_modules.causvid_dmd import CausVidDMD
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import Past

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.filterwarnings("ignore:.*self.log.*trainer. reference"),
]
DMD = {
    "few_steps": 2,
    "first_few_steps": 4,
    "guidance": 4.0,
    "critic_learning_rate": 2e-3,
    "critic_steps": 5,
    "t_min": 0.6,  # narrow, so that both ends are met
    "t_max": 0.85,
}
KINDS = [AsymmetricDMD, CausalDMD, CausVidDMD]


def made(kind, blocks="framewise", seed=1, **own):
    networks = {"teacher": network(2), "critic": network(3)} | own
    return stage(kind, blocks, seed, **DMD | networks)


class Counted(Past):
    """Notes the first frame of every denoising step's block."""

    def __init__(self, net, text, seen):
        super().__init__(net, text)
        self.seen = seen

    def velocity(self, x, t, block):
        self.seen.append(block.start)
        return super().velocity(x, t, block)


def self_rollout(module, row, random, text, sizes, exits):
    """One clip, block by block, from the student's own past; gradient at the exit step only."""
    noise = random.normal("noise", SHAPE)[row]
    past, clip = module.student.new_cache(), []
    for index, block in enumerate(blocks_of(sizes)):
        steps = module.first_few_steps if index == 0 else module.few_steps
        times, frames = grid(steps)[:-1], torch.arange(block.start, block.stop)
        x = x0 = noise[block]
        for step in range(exits[index] + 1):
            t = times[step]
            if step > 0:
                eps = random.normal(f"renoise/{step}", SHAPE)[row][block]
                x = (1 - t) * x0.detach() + t * eps
            level = torch.full((1, len(frames)), t)
            v = module.student(x[None], level, text[None], frames=frames, cache=past)[0]
            x0 = x - t * v
        clip.append(x0)
        with torch.no_grad():
            module.student(
                x0.detach()[None], 0 * level, text[None], frames=frames, cache=past,
                write_cache=True,
            )  # fmt: skip
    return torch.cat(clip)


def generate_beside_truth(module, row, random, text, sizes, exit_step, truth):
    """One clip, every frame on clean context, left at the exit step."""
    x = x0 = random.normal("noise", SHAPE)[row]
    times = grid(module.few_steps)
    for step in range(exit_step + 1):
        t = times[step]
        if step > 0:
            x = (1 - t) * x0.detach() + t * random.normal(f"renoise/{step}", SHAPE)[row]
        v = beside_clean(module.student, x, torch.full((4,), t), text, truth, sizes)
        x0 = x - t * v
    return x0


def answer_to_noised_truth(module, row, random, text, sizes, truth):
    """One call for a clip whose blocks have noise levels of their own (CausVid)."""
    drawn = random.integer("level", module.few_steps, (len(sizes),))[row].tolist()
    levels = [grid(module.few_steps)[step] for step in drawn]
    t = torch.tensor([level for level, n in zip(levels, sizes, strict=True) for _ in range(n)])
    level, eps = t[:, None, None, None], random.normal("noise", SHAPE)[row]
    x = (1 - level) * truth + level * eps
    return x - level * beside_noisy(module.student, x, t, text, sizes)


def clips(module, data, sizes) -> torch.Tensor:
    random = Randomness(f"{module.chapter}/{module.seed}", 0, data["key"])
    exit_step = random.shared_integer("exit", module.few_steps)
    made = []
    for row, text in enumerate(data["text"]):
        if isinstance(module, AsymmetricDMD):
            first = exit_step
            if module.first_few_steps != module.few_steps:
                first = random.shared_integer("first_exit", module.first_few_steps)
            exits = [first] + [exit_step] * (len(sizes) - 1)
            made.append(self_rollout(module, row, random, text, sizes, exits))
            continue
        truth = data["latents"][row]
        if isinstance(module, CausVidDMD):
            made.append(answer_to_noised_truth(module, row, random, text, sizes, truth))
        else:
            made.append(generate_beside_truth(module, row, random, text, sizes, exit_step, truth))
    return torch.stack(made)


def score(module, net, row, x, t, text, data, sizes):
    if not isinstance(module, CausalDMD):
        return together(net, x, t, text)
    return beside_clean(net, x, t, text, data["latents"][row], sizes)


def noised(module, random, row, x):
    u = random.uniform("time", (1,))[row, 0].item()
    t = min(max(warped(u), 0.6), 0.85)
    eps = random.normal("score_noise", SHAPE)[row]
    return (1 - t) * x + t * eps, t, eps


def dmd_gradient(module, data, x, sizes) -> torch.Tensor:
    random, gradient = Randomness(f"{module.chapter}/{module.seed}", 0, data["key"]), []
    for row, clip in enumerate(x.detach()):
        text = data["text"][row]
        x_t, t, _ = noised(module, random, row, clip)
        level = torch.full((4,), t)
        with torch.no_grad():
            fake = score(module, module.critic, row, x_t, level, text, data, sizes)
            with_text = score(module, module.teacher, row, x_t, level, text, data, sizes)
            without = score(module, module.teacher, row, x_t, level, module.negative, data, sizes)
        real = with_text + 3.0 * (with_text - without)  # as published: "3" is our 4
        fake_x0, real_x0 = x_t - t * fake, x_t - t * real
        gradient.append((fake_x0 - real_x0) / (clip - real_x0).abs().mean())
    return torch.stack(gradient)


@pytest.mark.parametrize("blocks", PARTITIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_student_turn(kind, blocks):
    exits = set()
    for seed in range(4):
        data, module, sizes = batch(2), made(kind, blocks, seed), SIZES[str(blocks)]
        exits.add(Randomness(f"{module.chapter}/{seed}", 0, []).shared_integer("exit", 2))
        x = clips(module, data, sizes)
        g = dmd_gradient(module, data, x, sizes)
        module.student_updated = True
        loss = module.training_step(data, 0)
        loss.backward()
        assert_same_gradients(module.student, (x * g).sum() / x.numel())
        assert not any(p.grad is not None for p in module.critic.parameters())
        assert not any(p.grad is not None for p in module.teacher.parameters())
    assert exits == {0, 1}


def test_one_exit_for_all_blocks_that_have_the_same_steps():
    """In 40 seeds each pair of exits of first and later blocks appears, or only equal ones."""
    for first_few_steps, pairs in ((2, 2), (3, 6)):
        found = set()
        for seed in range(40):
            module = made(AsymmetricDMD, seed=seed, first_few_steps=first_few_steps)
            left = []
            module.past = lambda batch, module=module, left=left: Counted(
                module.student, batch["text"], left
            )
            with torch.no_grad():
                module.generate(batch(1), module.randomness(batch(1)))
            found.add((left.count(0), left.count(1)))
        assert len(found) == pairs, found


@pytest.mark.parametrize("blocks", PARTITIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_critic_turn(kind, blocks):
    """Plain mean squared error of the velocity on the student's clips, unweighted."""
    for seed in range(2):
        data, module, sizes = batch(3), made(kind, blocks, seed), SIZES[str(blocks)]
        random, loss = Randomness(f"{module.chapter}/{seed}", 0, data["key"]), 0.0
        for row, clip in enumerate(clips(module, data, sizes).detach()):
            x_t, t, eps = noised(module, random, row, clip)
            level = torch.full((4,), t)
            v = score(module, module.critic, row, x_t, level, data["text"][row], data, sizes)
            loss = loss + (v - (eps - clip)).square().mean() / 3
        module.student_updated = False
        found = module.training_step(data, 0)
        torch.testing.assert_close(found, loss, rtol=1e-3, atol=1e-5)
        found.backward()
        assert_same_gradients(module.critic, loss)
        assert not any(p.grad is not None for p in module.student.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_when_the_critic_is_the_teacher(kind):
    module = made(kind, guidance=1.0, critic=network(2))
    module.training_step(batch(3), 0).backward()
    assert all(not p.grad.any() for p in module.student.parameters())
    guided = made(kind, critic=network(2))
    guided.training_step(batch(3), 0).backward()
    assert any(p.grad.any() for p in guided.student.parameters()), "guidance is part of the score"


def test_logged_loss_is_half_the_mean_squared_gradient(monkeypatch):
    data, module = batch(2), made(AsymmetricDMD)
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    module.training_step(data, 0)
    sizes = SIZES["framewise"]
    g = dmd_gradient(module, data, clips(module, data, sizes), sizes)
    torch.testing.assert_close(logged["train/loss"], g.square().mean() / 2, rtol=1e-3, atol=1e-5)


def test_only_prompts_are_read():
    data = batch(2)
    both = []
    for latents in (data["latents"], None):
        module = made(AsymmetricDMD)
        both.append(module.training_step(data | {"latents": latents}, 0))
    assert AsymmetricDMD.fields == ("text",) and torch.equal(*both)


def test_first_block_has_its_own_list():
    """One step for every block, four for the first: its exit is drawn apart."""
    calls = []
    for seed in range(40):  # each of four exits is missed by all with 1e-5
        module = made(AsymmetricDMD, seed=seed, few_steps=1)
        asked = []
        module.student.register_forward_pre_hook(
            lambda _, args, kwargs, asked=asked: asked.append(
                (kwargs["frames"].tolist(), kwargs.get("write_cache", False))
            ),
            with_kwargs=True,
        )
        module.student_updated = False
        module.training_step(batch(1), 0)
        denoised = [frames[-1] for frames, write in asked if not write or len(frames) == 2]
        assert all(denoised.count(frame) == 1 for frame in (1, 2, 3))
        calls.append(denoised.count(0))
    assert set(calls) == {1, 2, 3, 4}


def test_the_critic_is_shown_the_students_clips_in_fewer_calls():
    """Without gradient a commit rides along with the next block's first call."""
    module = made(AsymmetricDMD, seed=0, few_steps=2)
    calls, clips, spent, data = [], [], [], batch(2)
    module.student.register_forward_pre_hook(lambda *_: calls.append(1))
    for enabled in (True, False):
        calls.clear()
        with torch.set_grad_enabled(enabled):
            clips.append(module.generate(data, module.randomness(data)))
        spent.append(len(calls))
    assert [clip.requires_grad for clip in clips] == [True, False]
    assert spent[0] - spent[1] == 3, "four blocks, of which the last is never committed"
    torch.testing.assert_close(clips[1], clips[0].detach(), rtol=1e-4, atol=1e-5)
