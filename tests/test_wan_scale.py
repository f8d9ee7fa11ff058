"""The Wan scales: the paper's numbers as they must be, a scale on top of another, and refusals."""

import os
import subprocess
import sys
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
import torch
import yaml
from minimal import network

from datamodules.shards.reader import ShardWriter, open_shards
from experiments.checkpoints.networks import autoencoder_id
from experiments.generation import generation
from experiments.runs.config import flatten
from experiments.runs.files import load_scale
from experiments.runs.recipe import Library, resolve
from sweeps.plan.graph import load_sweep
from sweeps.report.frame import Frame
from sweeps.report.intervals import FrameNumbers
from sweeps.report.layout import load_layout
from sweeps.report.table import ELSEWHERE, our_table

ROOT = Path(__file__).parent.parent
INITS = ("self_forcing_ode", "ar_diffusion", "causal_ode", "causal_dmd", "causal_cd")
PUBLISHED = {  # recipe -> what the paper and its code say
    "stage1_teacher_forcing": {
        "fit.steps": 20_000, "fit.batch": 64, "fit.ema_decay": 0.0, "fit.clip_gradient": 10.0,
        "fit.precision": "bf16-mixed", "stage.learning_rate": 2e-6, "stage.betas": [0.0, 0.999],
        "stage.weight_decay": 0.01, "stage.shift": 5.0, "stage.guidance": 3.0,
        "stage.text_dropout": 0.0, "stage.clip_shape": [21, 16, 60, 104],
    },
    "stage2_causal_ode": {
        "fit.steps": 5_000, "fit.batch": 64, "stage.learning_rate": 2e-6,
        "stage.betas": [0.9, 0.999], "fit.ema_decay": 0.0,
    },
    "stage2_self_forcing_ode": {"fit.steps": 5_000, "stage.betas": [0.9, 0.999]},
    "stage2_causal_cd": {
        "fit.steps": 5_000, "stage.betas": [0.0, 0.999], "stage.intervals": 48,
        "stage.guidance": 3.0, "stage.decay": 0.99, "stage.learning_rate": 2e-6,
    },
    "stage3_asymmetric_dmd": {
        "stage.learning_rate": 2e-6, "stage.critic_learning_rate": 4e-7, "stage.guidance": 4.0,
        "stage.critic_steps": 5, "stage.first_few_steps": 4, "stage.betas": [0.0, 0.999],
        "fit.ema_decay": 0.99, "fit.batch": 64, "fit.clip_gradient": 10.0,
    },
    "causal_pairs": {
        "pairs.count": 80_000, "pairs.intervals": 48, "pairs.few_steps": 4,
        "pairs.guidance": 6.0, "pairs.shift": 5.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_the_published_numbers(recipe):
    resolved = resolve(recipe, "wan1.3b").recipe
    found = {}
    for section in ("fit", "stage", "pairs"):
        found |= flatten({section: resolved.get(section, {})})
    assert {key: found[key] for key in PUBLISHED[recipe]} == PUBLISHED[recipe]


@pytest.mark.parametrize("recipe", ["stage2_causal_dmd", "stage3_asymmetric_dmd"])
def test_steps_of_dmd_are_counted_of_both_networks(recipe):
    """The published counters tick with the critic: 1,000 of Stage 3 are 200 of the student."""
    resolved = resolve(recipe, "wan1.3b").recipe
    rounds = resolved["fit"]["steps"] / (1 + resolved["stage"]["critic_steps"])
    published = 1_000 if recipe.startswith("stage3") else 5_000
    assert rounds == published / 5
    assert resolved["fit"]["ema_start"] == 200 / 5


def test_weights_are_given_and_each_score_has_its_size():
    needs = resolve("stage3_asymmetric_dmd", "wan1.3b").recipe["needs"]
    assert needs["teacher"].endswith("14B-Diffusers") and needs["critic"].endswith("1.3B-Diffusers")
    needs = resolve("stage3_asymmetric_dmd", "wan14b").recipe["needs"]
    assert needs["teacher"].endswith("14B-Diffusers") and needs["critic"].endswith("14B-Diffusers")
    elsewhere = resolve("stage1_teacher_forcing", "wan1.3b", {"wan": "/weights/mine"})
    assert elsewhere.recipe["needs"]["student"] == "/weights/mine"
    assert elsewhere.needs["data"].recipe["needs"]["wan"] == "/weights/mine"


def test_chunkwise_reaches_pairs_and_students():
    run = resolve("stage2_causal_ode", "wan1.3b", {"blocks": "chunkwise"})
    blocks = {name: each.recipe for name, each in run.closure().items()}
    assert run.recipe["stage"]["blocks"] == "chunkwise"
    assert all(
        recipe["pairs"]["blocks"] == "chunkwise"
        for name, recipe in blocks.items()
        if name.startswith("causal_pairs")
    )


def test_the_table_is_planned_without_weights_or_gpu(tmp_path):
    """In an empty folder, without torch, in a blink: nothing is opened."""
    words = [sys.executable, "-X", "importtime", "-m", "sweeps", "plan", "ablation"]
    done = subprocess.run(
        [*words, "--scale", "wan1.3b", "--runs", str(tmp_path)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not {"torch", "numpy", "lightning", "diffusers"} & imported
    assert "18 cells" in done.stdout and "362:30:00" in done.stdout, "CD: 2,900 h on 8 devices"
    assert "device-hours, on up to 8 devices a run" in done.stdout


def test_the_table_has_the_benchmarks_columns_and_says_that_they_were_not_run(tmp_path):
    """A proxy's column never stands where VBench's would, nor the other way round."""
    tiny, wan = (load_layout(load_sweep("ablation", scale)) for scale in ("tiny", "wan1.3b"))
    assert not any(column.metric.startswith(ELSEWHERE) for column in tiny.columns.values())
    assert not any(column.metric.startswith("world.") for column in wan.columns.values())
    table = our_table(FrameNumbers(Frame(load_sweep("ablation", "wan1.3b"), tmp_path, wan)))
    row = {column.heading: table.blocks[0].rows[4].entries[column.id] for column in table.columns}
    assert row["VBench Total"].absent == row["VisionReward"].absent == "not run"
    assert not any("World" in heading for heading in row)


def test_no_run_of_the_table_needs_the_tiny_world():
    names = {name.rpartition("-")[0] for name in load_sweep("ablation", "wan1.3b").runs}
    assert names == {
        "openvid_clips", "vidprom_prompts", "vbench_prompts", "causal_pairs", "bidirectional_pairs",
        "stage1_teacher_forcing", "stage3_asymmetric_dmd", "sample", "score",
        *(f"stage2_{init}" for init in INITS),
    }  # fmt: skip


# -- a scale on top of another -------------------------------------------------------------------


def scales(folder: Path, **texts: str) -> Path:
    folder.mkdir()
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_scale_says_only_what_differs(tmp_path):
    base = "wan: a/b\nstages: {one: {steps: 1, batch: 2}}\nclips: {recipe: r, x: 1}\n"
    mine = "extends: base\nstages: {one: {steps: 7}}\nclips: {folder: d/e}\n"
    folder = scales(tmp_path / "s", base=base, mine=mine, more="extends: mine\nwan: c/d\n")
    assert load_scale(folder, "more") == {
        "wan": "c/d", "stages": {"one": {"steps": 7, "batch": 2}}, "clips": {"folder": "d/e"}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: base\nwna: x\n", "unknown key 'wna'.*base.yaml.*did you mean 'wan'"),
        ("extends: mine\n", "extend each other in a circle"),
        ("extends: bse\n", "extends: bse: .*there is no 'bse'; did you mean 'base'"),
        ("extends: [base]\n", "extends: .'base'. is not the name of a file"),
        ("extends: base\nstages: 3\n", "stages: 3 is no section .*, such as stages.one="),
    ],
)
def test_a_scale_that_extends_wrongly(tmp_path, text, message):
    folder = scales(tmp_path / "s", base="wan: a/b\nstages: {one: {steps: 1}}\n", mine=text)
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}"):
        resolve("stage1_teacher_forcing", "mine", library=Library(scales=folder))


# -- what does not belong together ---------------------------------------------------------------


def shard_set(folder: Path, **about) -> Path:
    with ShardWriter(folder / "shards", "prompts", about=about) as writer:
        writer.write("one", {"text": np.zeros((2, 3), np.float32)}, {"caption": "a prompt"})
    return folder


@pytest.mark.parametrize("part", ["autoencoder", "text_encoder"])
@pytest.mark.parametrize(
    ("more", "cure"), [({"folder": "/wan"}, "same Wan folder"), ({}, "same kind of processor")]
)
def test_sets_of_different_encoders(tmp_path, part, more, cure):
    made = {"autoencoder": {"id": "vae1"}, "text_encoder": {"id": "text1"}}
    sets = {
        "data": open_shards(shard_set(tmp_path / "a", **made) / "shards"),
        "panel": open_shards(shard_set(tmp_path / "b", **made) / "shards"),
        "older": open_shards(shard_set(tmp_path / "c") / "shards"),
    }
    generation.require_same_encoders(sets)
    other = shard_set(tmp_path / "d", **(made | {part: {"id": "other", **more}}))
    sets["panel"] = open_shards(other / "shards")
    with pytest.raises(ValueError, match=f"d/shards/manifest.json .panel.: {part} other.*{cure}"):
        generation.require_same_encoders(sets)


def test_a_network_of_another_autoencoder(tmp_path, wan_folder):
    shards = shard_set(tmp_path / "a", autoencoder={"id": "another"})
    with pytest.raises(ValueError, match="autoencoder another, but the teacher .* curate with"):
        generation.require_autoencoder("teacher", wan_folder, open_shards(shards / "shards"))


def test_precision_of_what_is_only_asked(tmp_path):
    net = network(1)
    net.save_pretrained(tmp_path / "student")
    device = torch.device("cpu")
    half = generation.frozen(tmp_path, device, "bf16-mixed")
    assert half.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert half.condition_embedder.time_proj.weight.dtype == torch.float32
    x, t, text = torch.randn(1, 2, 4, 4, 4), torch.rand(1, 2), torch.randn(1, 3, 8)
    with torch.no_grad(), generation.autocast(device, "bf16-mixed"):
        rounded, exact = (n(x, t, text, frames=torch.arange(2)) for n in (half, net))
    assert torch.equal(rounded, exact) and rounded.dtype == torch.float32
    with pytest.raises(ValueError, match="sample.precision: 'bf16' is none of"):
        generation.check_precision("bf16", "sample")


def test_a_run_whose_data_is_gone_knows_no_autoencoder(tmp_path):
    """Pairs take terabytes and are deleted after use; the student they made is not."""
    run = tmp_path / "stage2"
    run.mkdir()
    recipe = {"recipe": "stage2", "verb": "fit", "seed": 0, "needs": {"data": "pairs-00000002"}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    network(1).save_pretrained(run / "student")
    assert autoencoder_id(run) is None
    pairs = tmp_path / "pairs-00000002"
    shard_set(pairs, autoencoder=None)
    assert autoencoder_id(run) is None
    rmtree(pairs)
    shard_set(pairs, autoencoder={"id": "vae1"})
    assert autoencoder_id(run) == "vae1"
