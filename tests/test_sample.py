"""The verb sample: longer clips, image to video, and settings refused before anything is loaded."""

import json

import numpy as np
import pytest
import torch
from minimal import SHAPE, SHIFT, TEXT, draw, network

from datamodules.shards.reader import ShardWriter, open_shards
from datamodules.shards.work import ShardMaker
from experiments.generation.sampling import Sampling
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import resolve
from experiments.verbs import sample
from experiments.verbs.sample import check, generated_clips
from lightning_modules.diffusion.noisy_past import NoisyPast
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import FewSteps, Past, block_times, few_step_times, rollout

COUNT = 3
SETTINGS = {
    "sampler": "few_steps", "first": 0, "count": COUNT, "batch": 2, "clip_shape": list(SHAPE),
    "frames": SHAPE[0], "given": 0, "blocks": "framewise", "window": 0, "sinks": 0,
    "commit": "separate", "context_t": 0.0, "few_steps": 2, "first_few_steps": 3, "intervals": 4,
    "shift": SHIFT, "guidance": 2.0, "save": "latents",
}  # fmt: skip


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return write(tmp_path_factory.mktemp("prompts"), "clips")


def write(folder, kind, videos=()):
    latents, text = draw(0, COUNT, *SHAPE).numpy(), draw(1, COUNT, *TEXT).numpy()
    negative = draw(2, *TEXT).numpy()
    with ShardWriter(folder, kind, about={"fps": 8}, negative=negative) as writer:
        for number in range(COUNT):
            arrays = {"latents": latents[number], "text": text[number]}
            if kind == "prompts":
                del arrays["latents"]
            wanted = {"videos": videos[number]} if videos else {}
            writer.write(f"clip-{number}", arrays, {"caption": "a one", **wanted})
    return open_shards(folder)


def sampled(prompts, tmp_path, student, **settings) -> torch.Tensor:
    run = tmp_path / "sample"
    run.mkdir(parents=True)
    (tmp_path / "base-00000000").mkdir()
    (tmp_path / "base-00000000" / "done.json").write_text("{}")
    recipe = "recipe: sample\nverb: sample\nseed: 7\nneeds: {student: base-00000000}\n"
    (run / "recipe.yaml").write_text(recipe)
    chosen = Sampling(**(SETTINGS | settings))
    folder = RunFolder(run)
    maker = ShardMaker(
        generated_clips(student, prompts, chosen, folder, 7, torch.device("cpu")), folder
    )
    maker.make_all()
    maker.complete()
    shards = open_shards(run / "shards")
    return torch.from_numpy(
        np.stack([shards.read(i, ["latents"])["latents"] for i in range(COUNT)])
    )


@torch.no_grad()
def test_clips_are_the_plain_rollouts(prompts, tmp_path):
    student = network(1)
    made = sampled(prompts, tmp_path, student)
    keys, sizes = [f"clip-{number}" for number in range(COUNT)], (1,) * SHAPE[0]
    random, text = Randomness(7, 0, keys), draw(1, COUNT, *TEXT)
    sampler = FewSteps(
        few_step_times(sizes, 2, 3, SHIFT), lambda step: random.normal(f"renoise/{step}", SHAPE)
    )
    expected = rollout(Past(student, text), random.normal("noise", SHAPE), sizes, sampler)
    stored = torch.from_numpy(made.numpy())
    torch.testing.assert_close(stored, expected.to(stored.dtype), rtol=1e-3, atol=2e-3)


def test_several_videos_of_a_prompt(tmp_path):
    """The first videos are, bit for bit, those that are made without others; given images stay."""
    few, more = write(tmp_path / "few", "clips"), write(tmp_path / "more", "clips", (3, 1, 2))
    student, settings = network(1), {"batch": COUNT, "given": 1}
    plain = sampled(few, tmp_path / "plain", student, **settings)
    sampled(more, tmp_path / "several", student, **settings)
    shards = open_shards(tmp_path / "several" / "sample" / "shards")
    first = ["clip-0", "clip-1", "clip-2"]
    assert shards.keys == [*first, "clip-0-1", "clip-2-1", "clip-0-2"]
    made = {sample["key"]: torch.from_numpy(sample["latents"]) for sample in shards}
    assert torch.equal(torch.stack([made[key] for key in first]), plain)
    images = draw(0, COUNT, *SHAPE)[:, :1].to(plain.dtype)
    for at, key in ((0, "clip-0"), (0, "clip-0-1"), (0, "clip-0-2"), (2, "clip-2-1")):
        assert torch.equal(made[key][:1], images[at])
    for one, other in (("", "-1"), ("", "-2"), ("-1", "-2")):
        assert not torch.allclose(made[f"clip-0{one}"][1:], made[f"clip-0{other}"][1:], atol=1e-2)


@pytest.mark.parametrize("sampler", ["few_steps", "autoregressive_ode"])
def test_image_to_video_contains_the_image(prompts, tmp_path, sampler):
    made = sampled(prompts, tmp_path, network(1), given=1, sampler=sampler, commit="fused")
    images = draw(0, COUNT, *SHAPE)[:, :1].to(made.dtype)
    assert torch.equal(made[:, :1], images) and not torch.equal(made[:, 1:2], images)


def test_longer_clips(prompts, tmp_path):
    made = sampled(prompts, tmp_path, network(1), frames=10, window=4, sinks=1, context_t=0.1)
    assert made.shape == (COUNT, 10, *SHAPE[1:]) and torch.isfinite(made).all()


def test_frames_are_given_by_clips_alone(prompts, tmp_path):
    bare = write(tmp_path / "bare", "prompts")
    with pytest.raises(
        ValueError, match=r"sample.given: 1 conditioning .* has latents None; give clips"
    ):
        sampled(bare, tmp_path, network(1), given=1)
    with pytest.raises(ValueError, match=r"sample.count: prompts 1\.\.3 wanted"):
        sampled(prompts, tmp_path / "more", network(1), first=1)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"sample.sampler": "ddim"}, "sample.sampler: 'ddim' is none of"),
        ({"sample.commit": "late"}, "sample.commit: 'late' is none of"),
        ({"sample.save": "gif"}, "sample.save: 'gif' is none of"),
        ({"sample.window": 1}, "sample.window: 1 has no room for 0 sinks, a block of 1"),
        ({"sample.window": 4, "sample.sinks": 3}, "use 5 or more"),
        ({"sample.sinks": 1}, "sample.window: 0 has no room for 1 sinks"),
        ({"sample.given": 9}, "sample.given: 9 frames do not end with a block"),
        ({"sample.given": 1, "blocks": 3}, r"use one of \[3, 6\]"),
        ({"sample.frames": 10, "blocks": 4}, "blocks: 4 cannot cover 10 frames"),
        ({"sample.commit": "none", "sample.context_t": 0.1}, "sample.context_t: without a commit"),
        ({"sample.commit": "none", "few_steps": 1}, "sample.commit: none, .* set commit to sep"),
        ({"sampling.commit": "none", "few_steps": 1}, "sample.commit: none, .*pure noise; give"),
        ({"sample.commit": "none", "sample.first_few_steps": 1}, "sample.commit: none, .*one step"),
        (
            {"sample.commit": "none", "sampler": "autoregressive_ode", "sampling.intervals": 1},
            "sample.commit: none, .*one step",
        ),
        ({"sampler": "bidirectional_ode", "sample.window": 4}, "samples all frames jointly"),
        (
            {"launch.attention": "sage"},
            "launch.attention: 'sage' must be one of auto, measured, dense",
        ),
        ({"sample.windows": 4}, "did you mean 'sample.window'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        check(resolve("sample", "tiny", settings).recipe)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"levels": [[1, 0.5], [1, 0.7, 0.5]]}, "sample.levels: .*not be longer"),
        ({"levels": [[1.5]]}, r"sample.levels: \[\[1.5\]\] must be a list"),
        ({"few_steps": 1, "noisy_from": 1}, "sample.noisy_from: 1, .*pure noise.*noisy_from to n"),
        ({"levels": [[1, 0.5], [1]], "noisy_from": 1}, "sample.noisy_from: 1, .*pure noise"),
        ({"noisy_from": 1, "sample.commit": "none"}, "sample.noisy_from: 1, .*every block"),
        ({"noisy_from": 1, "sample.context_t": 0.1}, "sample.context_t: .*noisy_from to null"),
        ({"noisy_from": 9}, "sample.noisy_from: 9, but the last block of the clip is 8.*to null"),
        ({"noisy_from": 3, "blocks": 3}, "sample.noisy_from: 3, but the last block of .* 2, so"),
        ({"noisy_from": 1, "sampler": "autoregressive_ode"}, "only the sampler few_steps takes it"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        check(resolve("sample_schedule", "tiny", settings).recipe)


@torch.no_grad()
def test_levels_and_a_noisy_context_are_the_rollout_of_training(prompts, tmp_path):
    levels, student, sizes = [[1, 0.8, 0.5], [1, 0.6]], network(1), (1,) * SHAPE[0]
    made = sampled(prompts, tmp_path, student, levels=levels, noisy_from=1, commit="fused")
    random, text = Randomness(7, 0, [f"clip-{n}" for n in range(COUNT)]), draw(1, COUNT, *TEXT)
    times = block_times(sizes, levels, "levels")
    expected = rollout(
        NoisyPast(
            student, text, sizes=sizes, times=times, eps=draw(3, COUNT, *SHAPE), noisy_from=1
        ),
        random.normal("noise", SHAPE),
        sizes,
        FewSteps(times, lambda step: random.normal(f"renoise/{step}", SHAPE)),
    )
    torch.testing.assert_close(made, expected.to(made.dtype), rtol=1e-3, atol=2e-3)
    clean = sampled(prompts, tmp_path / "clean", student, levels=levels)
    assert not torch.allclose(made[:, 2:], clean[:, 2:], atol=1e-2)


def test_a_student_is_sampled_at_fewer_steps_than_it_was_trained_for():
    run = resolve("sample", "tiny", {"few_steps": 1, "needs.student.few_steps": 2})
    check(run.recipe)
    assert run.recipe["sample"]["few_steps"] == 1
    assert run.needs["student"].recipe["stage"]["few_steps"] == 2


def test_a_schedule_that_fits_is_not():
    for settings in ({"noisy_from": 8}, {"noisy_from": 9, "sample.frames": 10}):
        check(resolve("sample_schedule", "tiny", settings).recipe)


def test_settings_that_fit_are_not():
    for settings in (
        {},
        {"sample.frames": 40, "sample.window": 8, "sample.sinks": 2},
        {"sample.given": 3},
        {"sample.commit": "none"},
        {"sample.commit": "none", "sample.first_few_steps": 1, "sample.given": 1},
        {"sample.commit": "none", "few_steps": 1, "sample.given": 8},  # the last block is nobody's
        {"sampling.commit": "none", "sampler": "bidirectional_ode", "sampling.intervals": 1,
         "needs.student": {"recipe": "base"}},
    ):  # fmt: skip
        check(resolve("sample", "tiny", settings).recipe)


def test_other_blocks_than_those_of_training_are_said(tmp_path, caplog):
    (tmp_path / "config.json").write_text("{}")
    settings = Sampling(**SETTINGS)
    trained = {"sampler": "few_steps", "blocks": [2, 2]}
    for content, said in (
        (trained, True),
        (trained | {"blocks": [1] * SHAPE[0]}, False),
        ({}, False),
    ):
        caplog.clear()
        (tmp_path / "causal.json").write_text(json.dumps({"sampling": content}))
        sample._warn_of_other_blocks(tmp_path, settings)
        assert ("was trained with [2, 2]" in caplog.text) == said
