"""Distribution matching of CausVid and of Causal-rCM: exits, context, levels, real clips."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from minimal import SHAPE, batch, draw, network, stage

from experiments.checkpoints.sampling_config import sampling_of
from experiments.launch.checks import problem
from experiments.runs.recipe import resolve
from lightning_modules.causvid_dmd import CausVidDMD
from lightning_modules.diffusion.fast_past import FastPast
from lightning_modules.diffusion.noisy_past import NoisyPast
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import FewSteps, block_times, few_step_times, rollout
from lightning_modules.sf_dmd import SFDMD
from lightning_modules.training.dry_run import outcomes

pytestmark = pytest.mark.filterwarnings("ignore:.*self.log.*trainer. reference")
DMD = {
    "few_steps": 2, "first_few_steps": 4, "guidance": 2.0, "critic_learning_rate": 2e-3,
    "critic_steps": 5, "t_min": 0.0, "t_max": 1.0,
}  # fmt: skip
SF = DMD | {"levels": [], "noisy_from": None}
SIZES = [1, 1, 1, 1]


def made(kind, **own):
    return stage(kind, teacher=network(2), critic=network(3), **own)


def exits_of(module, step: int) -> list[int]:
    """Denoising calls of each block at a step."""
    module.trainer = SimpleNamespace(global_step=step, log_every_n_steps=0)
    module.student_updated = step % 6 == 0
    asked = []
    forward = module.student.forward

    def counted(x, t, text, *, frames, write_cache=False, **rest):
        if not write_cache:
            asked.append(frames[0].item())
        return forward(x, t, text, frames=frames, write_cache=write_cache, **rest)

    module.student.forward = counted
    with torch.no_grad():
        module.generate(batch(1), module.randomness(batch(1)))
    module.student.forward = forward
    return [asked.count(block) for block in range(4)]


def test_exits_come_in_turn_for_each_network():
    """Published for [4, 2]: 1-1, 2-2, 3-2, 4-2, of the updates of each network."""
    module, turns = made(SFDMD, **SF), [[1, 1], [2, 2], [3, 2], [4, 2]]
    student = [exits_of(module, 6 * n)[:2] for n in range(5)]
    assert student == [*turns, turns[0]]
    critic = [exits_of(module, step)[:2] for step in range(13) if step % 6]
    assert critic == [turns[n % 4] for n in range(len(critic))]


def test_a_dry_run_tries_every_turn():
    def run(choose):
        random = Randomness(0, 0, ["a"])
        random.in_turn = lambda purpose, below, count: choose(purpose, below)
        return random.in_turn("exit", 4, 0)

    assert list(outcomes(run)) == [(0.25, 0), (0.25, 1), (0.25, 2), (0.25, 3)]


def sampled(past, times) -> torch.Tensor:
    noise = draw(5, 2, *SHAPE)
    with torch.no_grad():
        return rollout(past, noise, SIZES, FewSteps(times, lambda step: draw(6 + step, 2, *SHAPE)))


def test_a_noisy_context_in_training_is_that_of_sampling():
    net, text = network(1), draw(1, 2, 3, 8)
    times = few_step_times(SIZES, 2, 2, 5.0)
    fast = sampled(FastPast(net, text, frames=4, commit="none"), times)
    eps = torch.full((2, *SHAPE), torch.nan)  # of no block that runs to its end
    slow = sampled(NoisyPast(net, text, sizes=SIZES, times=times, eps=eps, noisy_from=0), times)
    assert torch.equal(slow, fast)
    clips = [slow]
    for first in (1, 2, 4):
        late = NoisyPast(net, text, sizes=SIZES, times=times, eps=eps, noisy_from=first)
        clips.append(sampled(late, times))
        separate, fused = (
            sampled(FastPast(net, text, frames=4, commit=commit, noisy_from=first), times)
            for commit in ("separate", "fused")
        )
        assert torch.equal(clips[-1], separate)
        torch.testing.assert_close(clips[-1], fused)  # other sums: two blocks share a call
    assert torch.equal(clips[-1], sampled(FastPast(net, text, frames=4), times))
    assert all(not torch.allclose(a, b) for a, b in itertools.combinations(clips, 2))


def test_a_block_that_leaves_early_is_noised_to_its_last_level():
    net, text, eps = network(1), draw(1, 2, 3, 8), draw(9, 2, *SHAPE)
    times = few_step_times(SIZES, 3, 3, 5.0)
    past, written = NoisyPast(net, text, sizes=SIZES, times=times, eps=eps, noisy_from=1), []
    write = past.write
    past.write = lambda x, t, block: (written.append((x, t)), write(x, t, block))
    noise = draw(5, 2, *SHAPE)
    denoise = FewSteps(times, lambda step: draw(6 + step, 2, *SHAPE), exits=[0, 1, 2, 0])
    clip = rollout(past, noise, SIZES, denoise)
    last = times[0][-1]
    (x0, t0), (x1, t1), (x2, t2) = written
    torch.testing.assert_close(x0, clip[:, :1])
    assert (t0 == 0).all() and (t1 == last).all() and (t2 == last).all()
    torch.testing.assert_close(x1, (1 - last) * clip[:, 1:2] + last * eps[:, 1:2])
    assert not torch.allclose(x2, (1 - last) * clip[:, 2:3] + last * eps[:, 2:3]), "its own input"


def test_gradient_comes_from_the_exit_alone():
    module = made(SFDMD, **SF | {"noisy_from": 1})
    module.student_updated = True
    module.training_step(batch(2), 0).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.student.parameters())
    assert not any(p.grad is not None for p in module.critic.parameters())


@pytest.mark.parametrize(
    ("levels", "wrong"),
    [
        ([[1, 0.5], [1, 0.7, 0.5]], "not be longer"),
        ([[1, 0.5, 0.5]], "must fall"),
        ([[0.9, 0.5]], "fall from 1"),
        ([[1, 0.5, 0.0]], "above 0"),
        ([[1]] * 5, "5 lists for 4 blocks"),
    ],
)
def test_levels_that_are_no_schedule_are_refused(levels, wrong):
    with pytest.raises(ValueError, match=f"stage.levels: .*{wrong}"):
        made(SFDMD, **SF | {"levels": levels})


def test_the_last_levels_are_those_of_all_later_blocks():
    levels = [[1, 0.9375, 0.8333, 0.625], [1, 0.625]]
    times = block_times(SIZES, levels, "levels")
    assert [len(steps) for steps in times] == [4, 2, 2, 2]
    grid = few_step_times(SIZES, 2, 4, 5.0)
    for ours, published in zip(times, grid, strict=True):
        assert not torch.equal(ours, published) or len(ours) == 4
    assert times[0].tolist() == pytest.approx(grid[0].tolist(), abs=1e-4), "the grid of shift 5"


def test_the_panel_is_sampled_as_the_student_is_trained():
    module = made(SFDMD, **SF | {"levels": [[1, 0.8], [1, 0.6]], "noisy_from": 1})
    text, keys = draw(1, 2, 3, 8), ["a", "b"]
    random = Randomness(module.seed, 0, keys)
    past = FastPast(module.student, text, frames=4, noisy_from=1)
    with torch.no_grad():
        expected = rollout(
            past,
            random.normal("noise", SHAPE),
            SIZES,
            FewSteps(module.times, lambda step: random.normal(f"renoise/{step}", SHAPE)),
        )
    torch.testing.assert_close(module.sample(text, keys), expected)


def test_a_checkpoint_says_how_it_is_sampled():
    """The schedule and the context of its training, which an exported folder keeps."""
    levels = [[1, 0.9375, 0.8333, 0.625], [1, 0.625]]
    recipe = resolve("stage3_sf_dmd", "tiny", {"levels": levels, "noisy_from": 1}).recipe
    said = sampling_of(recipe["stage"])
    assert (said["sampler"], said["noisy_from"]) == ("few_steps", 1)
    assert said["levels"] == [pytest.approx(steps) for steps in levels]
    assert not {"few_steps", "times"} & set(said)
    grid = sampling_of(resolve("stage3_sf_dmd", "tiny").recipe["stage"])
    assert grid["few_steps"] == 4 and not {"levels", "noisy_from"} & set(grid)


def test_noise_as_context_is_refused():
    one = {"few_steps": 1, "noisy_from": 1}
    with pytest.raises(
        ValueError, match=r"stage.noisy_from: 1, .*pure noise.*set noisy_from to null"
    ):
        made(SFDMD, **SF | one)
    made(SFDMD, **SF | {"few_steps": 1})
    made(SFDMD, **SF | {"few_steps": 1, "noisy_from": 3})  # the last block is nobody's context


def test_a_first_noisy_block_that_no_clip_has_is_refused():
    for beyond in (len(SIZES), 40):
        said = rf"stage.noisy_from: {beyond}, but the last block .* 3, so none .*noisy_from to null"
        with pytest.raises(ValueError, match=said):
            made(SFDMD, **SF | {"noisy_from": beyond})
    made(SFDMD, **SF | {"noisy_from": len(SIZES) - 1})
    assert "stage.noisy_from: 9," in problem(
        resolve("stage3_sf_dmd", "tiny", {"noisy_from": 9}).recipe
    )


def test_causvid_answers_each_block_of_a_noised_real_clip_once():
    module, data = made(CausVidDMD, **DMD), batch(200)
    calls = []
    module.student.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        x0 = module.generate(data, module.randomness(data))
    ((x_t, t, _), kwargs) = calls[0]
    assert len(calls) == 1 and "cache" not in kwargs and x0.shape == data["latents"].shape
    eps = module.randomness(data).normal("noise", SHAPE)
    level = t[:, :, None, None, None]
    torch.testing.assert_close(x_t, (1 - level) * data["latents"] + level * eps)
    grid = [1.0, 5 * 0.5 / 3]
    assert {round(value, 4) for value in t.unique().tolist()} == {round(g, 4) for g in grid}
    high = (t == 1).double()
    assert abs(high.mean() - 0.5) < 4 * math.sqrt(0.25 / high.numel())
    together = (high[:, 0] * high[:, 1]).mean()
    assert abs(together - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(high)), "blocks are independent"
