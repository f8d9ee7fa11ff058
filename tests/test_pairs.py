"""Stored trajectories are the teacher's Euler steps, and its calls are counted as they happen."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from minimal import SHAPE, SHIFT, SIZES, TEXT, blocks_of, conditioned, draw, grid, network, together
from omegaconf import OmegaConf
from test_cuda_graphs import Recorder
from tiny_networks import LAW

from datamodules.shards.reader import ShardWriter, open_shards
from datamodules.shards.work import ShardMaker
from experiments.runs.folder import RunFolder
from experiments.verbs import pairs
from experiments.verbs.pairs import trajectories
from lightning_modules.diffusion.flow import time_grid
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import Past, Solve, rollout
from lightning_modules.networks import ClosedForm
from lightning_modules.networks.fingerprint import digest_of_weights
from lightning_modules.networks.wan.cuda_graphs import Replay

COUNT, BATCH, INTERVALS = 3, 2, 4


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    latents, text = draw(0, COUNT, *SHAPE).numpy(), draw(1, COUNT, *TEXT).numpy()
    with ShardWriter(folder, "clips", about={}, negative=draw(2, *TEXT).numpy()) as writer:
        for number in range(COUNT):
            arrays = {"latents": latents[number], "text": text[number]}
            writer.write(f"clip-{number}", arrays, {"caption": "a one"})
    return open_shards(folder)


def made(clips, tmp_path, teacher, past, blocks="framewise", guidance=1.0):
    run = tmp_path / "causal_pairs"
    run.mkdir()
    (tmp_path / "base-00000000").mkdir()
    (tmp_path / "base-00000000" / "done.json").write_text("{}")
    recipe = "recipe: causal_pairs\nverb: pairs\nseed: 7\nneeds: {teacher: base-00000000}\n"
    (run / "recipe.yaml").write_text(recipe)
    calls, forward = [], teacher.forward
    teacher.forward = lambda *a, **k: calls.append(None) or forward(*a, **k)
    work = trajectories(
        teacher, "base", "0123", clips, 7, torch.device("cpu"), past=past, count=COUNT,
        batch=BATCH, clip_shape=list(SHAPE), blocks=blocks, intervals=INTERVALS, solver="euler",
        few_steps=2, shift=SHIFT, guidance=guidance, stored="float16",
    )  # fmt: skip
    maker = ShardMaker(work, RunFolder(run))
    maker.make_all()
    maker.complete()
    assert RunFolder(run).read_record()["counters"] == {"pairs": COUNT, "refused": 0}
    return open_shards(run / "shards"), len(calls)


def euler(v, x):
    """The states at the start, the middle and the end of four steps."""
    states, times = [x], grid(INTERVALS)
    for t, t_next in zip(times, times[1:], strict=False):
        states.append(states[-1] + (t_next - t) * v(states[-1], torch.full((len(x),), t)))
    return states[::2]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_bidirectional_trajectories(clips, tmp_path, guidance):
    teacher, negative = network(3), draw(2, *TEXT)
    pairs, calls = made(clips, tmp_path, teacher, "bidirectional", guidance=guidance)
    assert calls == 2 * INTERVALS * (1 if guidance == 1 else 2), "two batches"
    for number in range(COUNT):
        text = torch.from_numpy(clips.read(number, ["text"])["text"]).float()

        def v(x, t, text=text):
            of = [together(teacher, x, t, words) for words in (text, negative)]
            return of[1] + guidance * (of[0] - of[1])

        noise = Randomness(7, 0, [f"clip-{number}"]).normal("noise", SHAPE)[0]
        with torch.no_grad():
            expected = torch.stack(euler(v, noise)).numpy()
        found = pairs.read(number, ["trajectory"])["trajectory"]
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=5e-3)  # stored in fp16


@pytest.mark.parametrize("blocks", ["framewise", 2, [1, 3]])
def test_causal_trajectories_go_beside_the_true_past(clips, tmp_path, blocks):
    teacher, sizes = network(3), SIZES[str(blocks)]
    pairs, calls = made(clips, tmp_path, teacher, "causal", blocks)
    assert calls == 2 * (INTERVALS * len(sizes) + len(sizes) - 1), "steps, and commits of the past"
    for number in range(COUNT):
        sample = clips.read(number, ["latents", "text"])
        truth, text = (torch.from_numpy(sample[f]).float() for f in ("latents", "text"))
        noise = Randomness(7, 0, [f"clip-{number}"]).normal("noise", SHAPE)[0]
        found = pairs.read(number, ["trajectory"])["trajectory"]
        for block in blocks_of(sizes):

            def v(x, t, block=block, truth=truth, text=text):
                whole, levels = truth.clone(), torch.zeros(len(truth))
                whole[block], levels[block] = x, t
                return conditioned(
                    teacher, block, whole, levels, text, truth, torch.zeros(len(truth)), sizes
                )

            with torch.no_grad():
                expected = torch.stack(euler(v, noise[block])).numpy()
            np.testing.assert_allclose(found[:, block], expected, rtol=2e-3, atol=5e-3)


def stored(teacher, clips, guidance):
    """Trajectories in float32, two batches of them."""
    work = trajectories(
        teacher, "base", "0123", clips, 7, torch.device("cpu"), past="causal", count=COUNT,
        batch=BATCH, clip_shape=list(SHAPE), blocks=[1, 3], intervals=INTERVALS, solver="euler",
        few_steps=2, shift=SHIFT, guidance=guidance, stored="float32",
    )  # fmt: skip
    return [torch.from_numpy(arrays["trajectory"]) for _, arrays, _ in work.make(range(COUNT))]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.no_grad()
def test_fixed_buffers_serve_all_batches_and_change_no_bit(clips, guidance):
    teacher, kept = network(3), []
    make = teacher.new_cache
    teacher.new_cache = lambda frames=None: kept.append(frames) or make(frames)
    found = stored(teacher, clips, guidance)
    assert kept == [SHAPE[0]], "a buffer of a clip's length, for both branches"
    negative = torch.from_numpy(clips.negative)
    for start in range(0, COUNT, BATCH):
        samples = [clips.read(n, ["latents", "text"]) for n in range(COUNT)][start : start + BATCH]
        text, truth = (
            torch.stack([torch.from_numpy(sample[f]) for sample in samples]).float()
            for f in ("text", "latents")
        )
        noise = Randomness(7, 0, [sample["key"] for sample in samples]).normal("noise", SHAPE)
        solver = Solve(time_grid(INTERVALS, SHIFT), range(0, INTERVALS + 1, 2))
        rollout(Past(teacher, text, negative, guidance), noise, [1, 3], solver, truth=truth)
        expected = torch.cat(solver.states, dim=2)
        assert torch.equal(torch.stack(found[start : start + BATCH]), expected)


def test_a_teacher_whose_calls_are_recorded_gives_the_same(clips):
    recorder, teacher = Recorder(), network(3)
    for own, plain in zip(
        stored(Replay(teacher, recorder), clips, 3.0), stored(teacher, clips, 3.0), strict=True
    ):
        assert torch.equal(own, plain)
    assert recorder.replayed > recorder.recorded > 0


@pytest.fixture
def run(clips, tmp_path):
    """The verb's run of a teacher in a folder of its own."""
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "shards").symlink_to(clips.folder)
    network(3).save_pretrained(tmp_path / "teacher")
    needs = {"data": f"{tmp_path / 'clips'}", "teacher": f"{tmp_path / 'teacher'}"}
    section = {"past": "causal", "count": COUNT, "batch": BATCH, "clip_shape": list(SHAPE)}
    section |= {"blocks": [1, 3], "intervals": INTERVALS, "solver": "euler", "few_steps": 2}
    section |= {"shift": SHIFT, "guidance": 3.0, "stored": "float16", "precision": "32-true"}
    recipe = {"recipe": "causal_pairs", "verb": "pairs", "seed": 7, "needs": needs}
    recipe |= {"pairs": section, "launch": {"accelerator": "cpu", "cuda_graphs": True}}
    folder = tmp_path / "causal_pairs"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(recipe)))
    return RunFolder(folder)


def test_the_verb_hurries_its_teacher(run, monkeypatch):
    """As ``launch`` wants it; what it is given is what is asked."""
    recorder = Recorder()

    def accelerated(net, launch, _):
        return Replay(net, recorder) if launch.cuda_graphs else net

    monkeypatch.setattr(pairs, "accelerated", accelerated)
    pairs.run(run.recipe, run)
    assert recorder.replayed > 0


def test_a_set_is_not_gone_on_with_by_another_teacher(run):
    """One that was trained anew in the same place, after the first tar was made."""
    teacher = run.need("teacher")
    assert ShardMaker(pairs.plan(run.recipe, run), run).help() == 1
    work = pairs.plan(run.recipe, run)
    ShardMaker(work, run)
    assert work.about["teacher_weights"] == digest_of_weights(teacher)
    other = network(3)
    with torch.no_grad():
        other.proj_out.bias += 1e-3
    other.save_pretrained(teacher)
    with pytest.raises(ValueError, match="begun with other settings"):
        ShardMaker(pairs.plan(run.recipe, run), run)


def test_a_closed_form_is_known_by_its_numbers(tmp_path):
    law = asdict(LAW)
    ClosedForm(law, 2, 2, 2).save_pretrained(tmp_path / "one")
    ClosedForm(law, 2, 2, 2).save_pretrained(tmp_path / "same")
    ClosedForm(law | {"noise": 0.5}, 2, 2, 2).save_pretrained(tmp_path / "other")
    one, same, other = (pairs._identity(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same != other
