"""Stored trajectories are the teacher's Euler steps, and its calls are counted as they happen."""

import numpy as np
import pytest
import torch
from minimal import SHAPE, SHIFT, SIZES, TEXT, beside, blocks_of, draw, grid, network, together

from datamodules.shards import ShardWriter, open_shards
from experiments.folder import RunFolder
from experiments.making.shard_work import ShardMaker
from experiments.pairs import trajectories
from lightning_modules.diffusion.randomness import Randomness

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
    run = tmp_path / "causal_pairs-00000000"
    run.mkdir()
    (tmp_path / "base-00000000").mkdir()
    (tmp_path / "base-00000000" / "done.json").write_text("{}")
    recipe = "recipe: causal_pairs\nverb: pairs\nseed: 7\nneeds: {teacher: base-00000000}\n"
    (run / "recipe.yaml").write_text(recipe)
    calls, forward = [], teacher.forward
    teacher.forward = lambda *a, **k: calls.append(None) or forward(*a, **k)
    work = trajectories(
        teacher, "base", clips, 7, torch.device("cpu"), past=past, count=COUNT, batch=BATCH,
        clip_shape=list(SHAPE), blocks=blocks, intervals=INTERVALS, solver="euler", few_steps=2,
        shift=SHIFT, guidance=guidance, stored="float16",
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
                return beside(
                    teacher, block, whole, levels, text, truth, torch.zeros(len(truth)), sizes
                )

            with torch.no_grad():
                expected = torch.stack(euler(v, noise[block])).numpy()
            np.testing.assert_allclose(found[:, block], expected, rtol=2e-3, atol=5e-3)
