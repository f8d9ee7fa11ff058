"""A tiny Wan pipeline through everything, by the verbs and the recipes of --scale wan1.3b.

mp4 files that an encoder made, OpenVid's table and prompt files go in; students leave as mp4, as
VBench's layout and as folders that stock diffusers loads. Only numbers are overridden, by a scale
that extends the real one.
"""

import json
import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from PIL import Image
from videos import moving, openvid_folder, picture, row

from datamodules.shards.reader import open_shards
from experiments.__main__ import main
from experiments.checkpoints.networks import load_network
from experiments.generation.codec import autoencoder_of
from experiments.generation.conditioning import read_image
from experiments.runs.recipe import Library
from sweeps.plan.graph import load_sweep

INITS = ("self_forcing_ode", "ar_diffusion", "causal_ode", "causal_dmd", "causal_cd")
PROMPTS = ["a cat walks on the grass", "still water at night", "a cat walks on the grass"]
SCALE = """
extends: wan1.3b
wan: {student}
wan_score: {score}
openvid: {data}/openvid
vidprom: {data}/vidprom
vbench: {data}/vbench
clip_shape: [3, 16, 2, 4]  # 9 frames of 16 x 32 pixels
clips: {{recipe: openvid_clips, curate.heldout_percent: 0}}
prompts: {{recipe: vidprom_prompts, count: 4, curate.heldout_percent: 0}}
intervals: 4
sampling: {{count: 2, videos: 2, intervals: 2}}
data: {{clips: 4}}
stages:
  stage1: {{steps: 2, batch: 2, learning_rate: 1.0e-3}}
  self_forcing_ode: {{steps: 2, batch: 2, learning_rate: 1.0e-3}}
  causal_ode: {{steps: 2, batch: 2, learning_rate: 1.0e-3}}
  causal_cd: {{steps: 2, batch: 2, learning_rate: 1.0e-3}}
  causal_dmd: {{steps: 3, batch: 2, learning_rate: 1.0e-3, critic_steps: 1, ema_start: 1}}
  stage3: {{steps: 3, batch: 2, learning_rate: 1.0e-3, critic_steps: 1, ema_start: 1}}
launch: {{threads: 1, accelerator: cpu, devices: 1, strategy: auto, workers: 0, panel_every: 3}}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory, wan_folder, wan_score_folder) -> Library:
    """Downloads as they would lie on a disk, and the scale that knows where."""
    data = tmp_path_factory.mktemp("downloads")
    names = [f"film{number}_{number}.mp4" for number in range(4)]
    films = {name: moving(14 + at, fps=24, width=104) for at, name in enumerate(names)}
    rows = [row(name, caption=f"a picture moves to the left in a long {name}") for name in films]
    openvid_folder(data / "openvid", films, rows)
    (data / "vidprom").mkdir()
    (data / "vidprom" / "vidprom_filtered_extended.txt").write_text(
        "\n".join([*PROMPTS, "a b c", "rain falls on a road"])
    )
    (data / "vbench").mkdir()
    extended = [f"{prompt}, seen from afar" for prompt in PROMPTS]
    (data / "vbench" / "all_dimension_extended.txt").write_text("\n".join(extended))
    (data / "vbench" / "all_dimension.txt").write_text("\n".join(PROMPTS))
    scales = Path(shutil.copytree(Library().scales, data / "scales"))
    text = SCALE.format(student=wan_folder, score=wan_score_folder, data=data)
    (scales / "test.yaml").write_text(text)
    return Library(scales=scales)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, library) -> Path:
    """All five initialisations after Stage 3, each with all that it needs."""
    folder = tmp_path_factory.mktemp("runs")
    for init in INITS:
        words = ["fit", "stage3_asymmetric_dmd", f"init={init}", "--scale", "test"]
        assert main([*words, "--with-needs", "--runs", str(folder)], library) == 0, init
    return folder


def verb(library, runs, *words) -> Path:
    """The run that the words mean, done."""
    before = {path.parent for path in runs.glob("*/done.json")}
    assert main([*words, "--scale", "test", "--runs", str(runs)], library) == 0
    (made,) = {path.parent for path in runs.glob(f"{words[1]}-*/done.json")} - before
    return made


@pytest.fixture(scope="module")
def student(runs) -> Path:
    """The student that started from causal CD."""
    found = [path for path in runs.glob("stage3_*") if "init: causal_cd" in recipe(path)]
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def samples(library, runs, student) -> Path:
    return verb(library, runs, "sample", "sample", f"needs.student={{folder: {student}}}")


def recipe(run: Path) -> str:
    return (run / "recipe.yaml").read_text()


def only(runs: Path, name: str) -> Path:
    (found,) = runs.glob(f"{name}-*")
    return found


def test_every_initialisation_was_trained_from_the_same_clips(runs):
    clips = open_shards(only(runs, "openvid_clips") / "shards")
    assert clips.manifest["fields"]["latents"] == {"shape": [3, 16, 2, 4], "dtype": "float16"}
    assert clips.manifest["fields"]["text"]["shape"][0] == 512
    counters = {
        run.name.rpartition("-")[0]: json.loads((run / "record.json").read_text())["counters"]
        for run in runs.glob("stage[12]_*")
        if not run.name.startswith("stage2_ar_diffusion")
    }
    assert len(counters) == 5
    for name, counted in counters.items():
        assert counted["samples"] == 2 * counted["batches"] > 0, name
        passes = counted["student_forwards"] + counted.get("critic_forwards", 0)
        assert passes >= counted["samples"], f"{name}: two parts of one clip a step"
    assert len(list(runs.glob("stage3_asymmetric_dmd-*/done.json"))) == len(INITS)


def test_the_score_is_larger_than_the_student(runs, student, wan_score_folder):
    trained, score = load_network(student), load_network(wan_score_folder)
    sizes = [sum(p.numel() for p in net.parameters()) for net in (trained, score)]
    assert sizes[0] < sizes[1]
    critic = json.loads((student / "record.json").read_text())["counters"]["critic_backwards"]
    assert critic > 0


@pytest.mark.parametrize("past", ["causal", "bidirectional"])
def test_pairs_know_what_they_were_encoded_by(runs, past):
    pairs = open_shards(only(runs, f"{past}_pairs") / "shards").manifest
    clips = open_shards(only(runs, "openvid_clips") / "shards").manifest
    assert pairs["autoencoder"]["id"] == clips["autoencoder"]["id"]
    assert pairs["text_encoder"]["id"] == clips["text_encoder"]["id"]
    assert pairs["past"] == past and pairs["guidance"] == 6.0 and pairs["shift"] == 5.0


def test_training_moved_weights_that_stay_float32(runs, wan_folder):
    before = load_network(wan_folder).state_dict()
    for run in [only(runs, "stage1_teacher_forcing"), *runs.glob("stage3_*")]:
        after = load_network(run).state_dict()
        assert all(weight.dtype == torch.float32 for weight in after.values())
        assert any(not torch.equal(after[name], before[name]) for name in before), run.name


def test_samples_are_videos_beside_latents(samples):
    shards = open_shards(samples / "shards")
    assert shards.manifest["kind"] == "clips" and len(shards) == 4
    assert shards.manifest["fields"]["latents"]["shape"] == [3, 16, 2, 4]
    files = sorted(path.name for path in (samples / "videos").iterdir())
    assert files == sorted(f"{key}.mp4" for key in shards.keys)
    for file in files:
        with av.open(str(samples / "videos" / file)) as container:
            stream = container.streams.video[0]
            assert (stream.codec.name, stream.pix_fmt) == ("h264", "yuv420p")
            assert (stream.width, stream.height, stream.average_rate) == (32, 16, 16)
            assert len(list(container.decode(video=0))) == 9


def test_a_picture_is_where_a_video_begins(library, runs, student, tmp_path):
    """Image to video by the command line; the first frame is what the VAE keeps of the picture."""
    Image.fromarray(picture(3, 64, 32)).save(tmp_path / "first.png")
    words = [f"needs.student={{folder: {student}}}", "sample.given=1"]
    words += [f"needs.pictures={{folder: {tmp_path}/first.png}}"]
    made = verb(library, runs, "sample", "sample", *words)
    shards = open_shards(made / "shards")
    vae = autoencoder_of(shards.manifest)
    image = torch.from_numpy(read_image(tmp_path / "first.png", 16, 32, 3))
    for sample in shards:
        first = vae.encode(image[None, None])[0].numpy()
        np.testing.assert_allclose(sample["latents"][:1], first, atol=1e-5)
        with av.open(str(made / "videos" / f"{sample['key']}.mp4")) as container:
            shown = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
        assert np.abs(shown - vae.decode(torch.from_numpy(first[None]))[0, 0].numpy()).mean() < 8


def test_panels_show_prompts_that_have_no_real_clip(runs, student):
    """Launch settings that change no run: they are seen in TensorBoard and as files."""
    for run in [student, only(runs, "stage1_teacher_forcing"), only(runs, "stage2_causal_dmd")]:
        files = {path.suffix: path for path in (run / "samples").iterdir()}
        with Image.open(files[".gif"]) as moving:
            assert moving.n_frames == 9 and moving.size == (96, 2 * (48 + 14))
        assert files[".png"].stat().st_size > 0


def test_vbench_gets_its_names_and_its_command(library, runs, samples):
    scored = verb(library, runs, "score", "score", f"needs.samples={{folder: {samples}}}")
    lines = [json.loads(x) for x in (scored / "vbench" / "manifest.jsonl").read_text().splitlines()]
    files = {path.name for path in (scored / "vbench" / "videos").iterdir()}
    wanted = {f"{prompt}-{index}.mp4" for prompt in PROMPTS[:2] for index in (0, 1)}
    assert files == wanted == {x["file"] for x in lines}
    keys = {x["file"]: x["key"] for x in lines}
    assert all(keys[f"{p}-1.mp4"] == f"{keys[f'{p}-0.mp4']}-1" for p in PROMPTS[:2])
    assert all(x["prompt_used"] == f"{x['prompt_en']}, seen from afar" for x in lines)
    assert all((x["frames"], x["height"], x["width"], x["fps"]) == (9, 16, 32, 16) for x in lines)
    assert "--wording extended" in (scored / "vbench" / "evaluate.sh").read_text()
    assert (scored / "vbench" / "judge.py").is_file()
    records = [json.loads(line) for line in (scored / "scores.jsonl").read_text().splitlines()]
    values = {record["metric"]: record for record in records}
    assert values["vbench.total"]["value"] is None and values["vbench.total"]["kind"] == "exact"
    assert "not run" in values["vbench.total"]["skipped"]
    proxy = values["videos.dynamic_dis"]
    assert proxy["kind"] == "proxy" and proxy["n"] == 4 and proxy["value"] is not None


def test_an_exported_student_is_stock_diffusers(student, tmp_path, wan_folder):
    out = tmp_path / "exported"
    assert main(["export", str(student), "--to", str(out)]) == 0
    place = out / "transformer" if (out / "transformer").is_dir() else out
    stock = WanTransformer3DModel.from_pretrained(place)
    ours = load_network(student)
    x, text = torch.randn(1, 3, 16, 2, 4), torch.randn(1, 7, 32)
    with torch.no_grad():
        v = stock(x.transpose(1, 2), torch.tensor([700.0]), text, return_dict=False)[0]
        own = ours(x, torch.full((1, 3), 0.7), text, frames=torch.arange(3))
    torch.testing.assert_close(v.transpose(1, 2), own, rtol=1e-4, atol=1e-4)
    pipeline = WanPipeline.from_pretrained(wan_folder, transformer=stock)
    assert pipeline.transformer is stock


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pairs", "causal_pairs", "pairs.clip_shape=[2,16,2,4]"],
         r"latents \[3, 16, 2, 4\], the recipe wants \[2, 16, 2, 4\]: use shards made for"),
        (["fit", "stage1_teacher_forcing", "stage.clip_shape=[3,16,4,4]"],
         r"latents \[3, 16, 2, 4\], the recipe wants \[3, 16, 4, 4\]"),
        (["fit", "stage2_causal_ode", "stage.blocks=[1,2]"],
         r"blocks is \[1, 1, 1\], the recipe wants \[1, 2\]"),
        (["fit", "stage3_asymmetric_dmd", "needs.teacher={{folder: {other}}}"],
         "but the teacher .*other was made with .*curate with the VAE of the teacher"),
        (["sample", "sample", "needs.student={{folder: {other}}}"],
         "but the student .*other was made with"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)  # fmt: skip
def test_refused_before_anything_is_loaded(
    library, runs, wan_score_folder, tmp_path, capsys, monkeypatch, words, message
):
    """Too few frames, another resolution, other blocks, another VAE."""
    other = Path(shutil.copytree(wan_score_folder, tmp_path / "other"))
    config = json.loads((other / "vae" / "config.json").read_text())
    config["latents_mean"][0] += 0.5
    (other / "vae" / "config.json").write_text(json.dumps(config))
    for module in ("experiments.verbs.fit", "experiments.generation.generation"):
        monkeypatch.setattr(f"{module}.load_network", lambda where: pytest.fail("loaded"))
    words = [word.format(other=other) for word in words]
    assert main([*words, "--scale", "test", "--runs", str(runs)], library) == 1
    said = capsys.readouterr().err
    assert re.search(message, said) and "Traceback" not in said, said


def test_the_sweep_of_the_table_has_the_same_runs(library, runs):
    """What was run here by hand is what the sweep would run: the names are equal."""
    sweep = load_sweep("ablation", "test", library=library)
    assert len(sweep.cells) == 18 and not any("floor" in str(cell.labels) for cell in sweep.cells)
    done = {path.parent.name for path in runs.glob("*/done.json")}
    shared = [name for name in sweep.runs if name.startswith(("stage1_", "stage2_", "openvid_"))]
    assert shared and set(shared) <= done
