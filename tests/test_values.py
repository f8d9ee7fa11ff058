"""What is generated, trained or imported is looked at before it is stored."""

import shutil

import numpy as np
import pytest
import torch
from minimal import draw, network
from test_older_runs import BEGUN, RUN
from test_pairs import made as pairs_of
from test_sample import sampled, write

from datamodules.shards.reader import ShardWriter
from datamodules.values import LARGEST, fault
from experiments.__main__ import main
from experiments.checkpoints.networks import load_network
from experiments.generation.outputs import Saver
from experiments.verbs import fit
from lightning_modules.networks.encoders import PatchTransform

NAN, INF = float("nan"), float("inf")
CLIP = np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 4, 2, 2)


def with_one(value):
    values = CLIP.copy()
    values[1, 2, 0, 1] = value
    return values


@pytest.mark.parametrize(
    "values, said",
    [
        (with_one(NAN), "not finite (nan)"),
        (with_one(INF), "not finite (inf)"),
        (with_one(-INF), "not finite (-inf)"),
        (with_one(2 * LARGEST), "out of range (-1 to 2e+04"),
        (with_one(-2 * LARGEST), "out of range (-2e+04 to 1"),
        (with_one(NAN).astype(np.float16), "not finite (nan)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "constant (0 everywhere)"),
        (np.full((2, 8, 8, 3), 255, np.uint8), "constant (255 everywhere)"),
    ],
)
def test_what_is_wrong_is_said_of_arrays_and_of_tensors(values, said):
    assert fault(values, varied=True).startswith(said)
    assert fault(torch.from_numpy(values), varied=True).startswith(said)


@pytest.mark.parametrize(
    "values", [CLIP, CLIP.astype(np.float16), np.float32([3]), np.zeros((0, 4), np.float32)]
)
def test_sound_values_pass(values):
    assert fault(values, varied=True) == fault(torch.from_numpy(values), varied=True) == ""


def test_the_same_number_everywhere_is_wrong_only_where_values_vary():
    assert fault(np.zeros(8)) == "" and fault(torch.zeros(8)) == ""


TEXT = np.zeros((3, 2), np.float32)


@pytest.mark.parametrize(
    "kind, arrays, said",
    [
        ("clips", {"latents": with_one(NAN), "text": TEXT}, "latents is not finite"),
        ("clips", {"latents": 0 * CLIP, "text": TEXT}, "latents is constant"),
        ("clips", {"latents": CLIP, "text": TEXT + NAN}, "text is not finite"),
        ("prompts", {"text": TEXT - INF}, "text is not finite"),
        ("pairs", {"trajectory": with_one(INF)[None], "text": TEXT}, "trajectory is not finite"),
        ("videos", {"video": np.zeros((2, 8, 8, 1), np.uint8)}, "video is constant"),
        ("clips", {"latents": CLIP, "text": TEXT, "state": TEXT + NAN}, "state is not finite"),
    ],
)
def test_a_shard_refuses_them_by_key_and_field(tmp_path, kind, arrays, said):
    with (
        pytest.raises(ValueError, match=f"sample 'bad' for {tmp_path}: {said}"),
        ShardWriter(tmp_path, kind, about={}) as writer,
    ):
        writer.write("bad", arrays, {"caption": "a one"})
    assert not (tmp_path / "manifest.json").exists()


def diverging(below: float):
    """A network that makes NaN at noise levels below ``below``."""
    student = network(1)
    forward = student.forward
    student.forward = lambda x, t, *a, **k: (
        forward(x, t, *a, **k)
        + torch.where((t < below) & (t > 0), NAN, 0.0).view(*t.shape, 1, 1, 1)
    )
    return student


def test_samples_that_are_nan_end_the_run_and_say_where_it_began(tmp_path):
    prompts = write(tmp_path / "prompts", "clips")
    said = (
        r"sample 'clip-0' \(and 1 more of 2\): what the student generated is not finite \(nan\);"
        r" it began at call 2 of the network, frames 0\.\.0 at noise level 0\.\d+ \(its input was"
        r" sound, its output not finite \(nan\)\); the network's weights are finite"
    )
    with pytest.raises(ValueError, match=said):
        sampled(prompts, tmp_path, diverging(below=1.0))
    assert not list((tmp_path / "sample").rglob("*.tar"))


def test_a_weight_that_is_not_finite_is_named(tmp_path):
    student = network(1)
    name, weight = next((n, p) for n, p in student.named_parameters() if "blocks.0.ffn" in n)
    weight.data.view(-1)[0] = NAN
    prompts = write(tmp_path / "prompts", "clips")
    with pytest.raises(ValueError, match=rf"frames 0\.\.0 .*; weight {name} is not finite \(nan\)"):
        sampled(prompts, tmp_path / "run", student)
    student.save_pretrained(tmp_path / "weights")
    with pytest.raises(ValueError, match=rf"weights: {name} is not finite \(nan\); take another"):
        load_network(tmp_path / "weights")


@pytest.mark.parametrize("past", ["causal", "bidirectional"])
def test_pairs_of_a_teacher_that_makes_nan_are_refused(tmp_path, past):
    clips = write(tmp_path / "clips", "clips")
    with pytest.raises(ValueError, match=r"'clip-0' .*: what the teacher generated is"):
        pairs_of(clips, tmp_path, diverging(below=0.9), past)
    assert not list((tmp_path / "causal_pairs").rglob("*.tar"))


def manifest():
    codec = PatchTransform([0.0] * 4, 1.0, kept=4)
    return {
        "fps": 8,
        "autoencoder": {"class": "PatchTransform", "id": codec.id, "kept": 4, "pixel_channels": 1},
        "normalisation": {"mean": [0.0] * 4, "std": 1.0},
    }


@pytest.mark.parametrize("how", ["pixels", "mp4"])
def test_decoded_pixels_are_looked_at_before_a_file_is_written(tmp_path, how):
    saver, sample = (
        Saver(how, tmp_path, manifest(), torch.device("cpu")),
        {"key": "k", "text": TEXT},
    )
    clips = draw(0, 1, 2, 4, 2, 2)
    with pytest.raises(ValueError, match="'k': its decoded video is constant"):
        saver.stored([sample], 0 * clips + 50 * torch.eye(4)[0].view(1, 1, 4, 1, 1))
    with pytest.raises(ValueError, match="decoded pixels that are not finite"):
        saver.stored([sample], clips + NAN)
    assert saver.stored([sample], clips)


def test_a_student_that_is_nan_is_not_handed_on(tmp_path, monkeypatch, capsys):
    """Training may end so after its last loss was finite."""

    def train(module, *_):
        next(module.student.parameters()).data.view(-1)[0] = NAN
        return True

    shutil.copytree(BEGUN, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(fit, "_train", train)
    assert main(["fit", str(tmp_path / RUN)]) == 1
    assert f"{RUN} is not handed on: student." in capsys.readouterr().err
    assert not (tmp_path / RUN / "student").exists()
