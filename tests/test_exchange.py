"""Weights from published files and back: names, bits, and what stock diffusers makes of them."""

import json
import logging

import pytest
import torch
from diffusers import WanTransformer3DModel
from minimal_runs import only, prepared
from safetensors.torch import load_file, save_file
from tiny_wan import STUDENT, transformer_of

from experiments.__main__ import main
from experiments.checkpoints.networks import load_network
from experiments.checkpoints.wan_keys import (
    PUBLISHED,
    config_of,
    to_diffusers,
    to_published,
    unwrapped,
)

# Every name in Wan2.1's own files (Wan-Video/Wan2.1, wan/modules/model.py), of a layer and outside.
LAYER = [
    "modulation",
    *(
        f"{attention}.{part}"
        for attention in ("self_attn", "cross_attn")
        for part in (
            *(f"{linear}.{kind}" for linear in "qkvo" for kind in ("weight", "bias")),
            "norm_q.weight",
            "norm_k.weight",
        )
    ),
    *(f"{part}.{kind}" for part in ("norm3", "ffn.0", "ffn.2") for kind in ("weight", "bias")),
]
OUTSIDE = [
    "head.modulation",
    *(
        f"{part}.{kind}"
        for part in (
            "patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0",
            "time_embedding.2", "time_projection.1", "head.head",
        )
        for kind in ("weight", "bias")
    ),
]  # fmt: skip
STUDENTS = {  # how each project wraps the names in its files
    "plain": "{}",
    "self_forcing": "model.{}",
    "fsdp": "model._fsdp_wrapped_module.{}",
    "checkpointed": "model._fsdp_wrapped_module.{}",
    "compiled": "_orig_mod.model.{}",
    "parallel": "module.model.{}",
}


def published_names(layers=STUDENT.num_layers):
    return {*OUTSIDE, *(f"blocks.{layer}.{name}" for layer in range(layers) for name in LAYER)}


def published_weights(seed=0):
    """Random weights of the tiny network, no two alike, under the published names."""
    torch.manual_seed(seed)
    weights = to_published(transformer_of(STUDENT).state_dict())
    return {name: 0.2 * torch.randn_like(tensor) for name, tensor in weights.items()}


def wrapped(weights, how):
    if how == "checkpointed":  # activation checkpointing stands inside the name
        weights = {
            name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): tensor
            for name, tensor in weights.items()
        }
    return {STUDENTS[how].format(name): tensor for name, tensor in weights.items()}


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


def weights_in(folder):
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


# -- names -----------------------------------------------------------------------------------------


def test_names_are_wans_own_and_come_back():
    ours = transformer_of(STUDENT).state_dict()
    published = to_published(ours)
    assert published.keys() == published_names()
    same(to_diffusers(published), ours)
    same(to_diffusers(ours), ours)


def test_the_swapped_norm_is_swapped():
    """Wan's norm3 is the affine one before cross-attention, which diffusers calls norm2."""
    converted = to_diffusers({"blocks.1.norm3.weight": torch.ones(2)})
    assert list(converted) == ["blocks.1.norm2.weight"]
    assert list(to_published(converted)) == ["blocks.1.norm3.weight"]


@pytest.mark.parametrize("how", STUDENTS)
def test_wrappers_are_taken_off(how):
    weights = published_weights()
    same(unwrapped(wrapped(weights, how)), weights)
    with pytest.raises(ValueError, match="not one network's weights"):
        unwrapped({"model.head.modulation": torch.ones(1), "head.modulation": torch.ones(1)})


@pytest.mark.parametrize(("size", "billions"), [("1.3B", 1.419), ("14B", 14.288)])
def test_shapes_tell_the_published_sizes(size, billions):
    with torch.device("meta"):
        network = WanTransformer3DModel(**PUBLISHED[size])
    published = to_published(network.state_dict())
    assert published.keys() == published_names(PUBLISHED[size]["num_layers"])
    assert config_of(to_diffusers(published)) == PUBLISHED[size]
    assert sum(tensor.numel() for tensor in published.values()) / 1e9 == pytest.approx(
        billions, abs=1e-3
    )


# -- import ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", STUDENTS)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_any_wrapper_in_any_file_is_imported_bit_for_bit(use, tmp_path, how, suffix):
    weights = published_weights()
    file = tmp_path / f"file{suffix}"
    if suffix == ".safetensors":
        save_file(wrapped(weights, how), file)
    else:
        torch.save({"generator": wrapped(weights, how), "step": 3} if suffix == ".pt"
                   else wrapped(weights, how), file)  # fmt: skip
    assert use("import", file, "--as", tmp_path / "new")[0] == 0
    same(to_published(weights_in(tmp_path / "new")), weights)
    same(dict(load_network(tmp_path / "new").state_dict()), to_diffusers(weights))


def test_the_average_is_taken_unless_told_otherwise(use, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    keys = ("generator", "generator_ema", "critic")
    networks = {key: published_weights(seed) for seed, key in enumerate(keys)}
    torch.save(networks, tmp_path / "all.pt")
    for flag, key in ((None, "generator_ema"), ("--raw", "generator"), ("--critic", "critic")):
        new = tmp_path / f"new-{key}"
        words = ["import", tmp_path / "all.pt", "--as", new, *([flag] if flag else [])]
        assert use(*words)[0] == 0
        same(to_published(weights_in(new)), networks[key])
        source = json.loads((new / "causal.json").read_text())["source"]
        assert source == {"file": "all.pt", "weights": key}
    assert "using generator_ema, the EMA; --raw selects generator" in caplog.text


def test_the_key_model_is_a_raw_student(use, tmp_path):
    torch.save({"model": published_weights()}, tmp_path / "one.pt")
    assert use("import", tmp_path / "one.pt", "--as", tmp_path / "new", "--raw")[0] == 0
    status, said = use("import", tmp_path / "one.pt", "--as", tmp_path / "other", "--ema")
    assert status == 1 and "no ema weights; it has model (--raw)" in said


def test_bfloat16_stays_bfloat16(use, tmp_path):
    weights = {name: tensor.bfloat16() for name, tensor in published_weights().items()}
    save_file(weights, tmp_path / "half.safetensors")
    assert use("import", tmp_path / "half.safetensors", "--as", tmp_path / "new")[0] == 0
    same(to_published(weights_in(tmp_path / "new")), weights)


class Code:
    """What unpickling would run."""

    def __reduce__(self):
        return (pytest.fail, ("ran code of a checkpoint",))


def without(weights, *names):
    return {name: tensor for name, tensor in weights.items() if name not in names}


REFUSED = {
    "nothing there": (None, "No such file"),
    "code": ({"generator": Code()}, "could run code and is not read"),
    "unknown": (
        published_weights() | {"blocks.0.img_attn.weight": torch.ones(1)},
        "1 unknown weights (blocks.0.img_attn.weight)",
    ),
    "missing": (
        without(published_weights(), "head.modulation", "blocks.0.ffn.0.bias"),
        "2 missing weights (blocks.0.ffn.net.0.proj.bias, scale_shift_table)",
    ),
    "shape": (
        published_weights() | {"head.head.bias": torch.ones(3)},
        "proj_out.bias is [3], its config says [64]",
    ),
    "other": ({"optimizer": {}}, "no network under any known key (top level: optimizer)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_student_is_refused_and_leaves_nothing(use, tmp_path, case):
    content, message = REFUSED[case]
    if content is not None:
        torch.save(content, tmp_path / "file.pt")
    status, said = use("import", tmp_path / "file.pt", "--as", tmp_path / "new")
    assert status == 1 and message in said and str(tmp_path / "file.pt") in said
    assert "Traceback" not in said
    assert {path.name for path in tmp_path.iterdir()} <= {"file.pt"}


def test_cut_files_other_sizes_and_taken_places_are_refused(use, tmp_path, capsys):
    file = tmp_path / "file.pt"
    torch.save({"generator": published_weights()}, file)
    assert main(["import", str(file), "--as", str(tmp_path / "new")]) == 1  # no --config
    assert "2 layers of width 24 are of no published size" in capsys.readouterr().err
    assert use("import", file, "--as", tmp_path)[1].count("is there already") == 1
    file.write_bytes(file.read_bytes()[:-2000])
    assert "damaged or cut off" in use("import", file, "--as", tmp_path / "new")[1]


# -- export ----------------------------------------------------------------------------------------


def forward(network, folder_kind):
    """Velocities of one clip, all frames seeing each other."""
    torch.manual_seed(3)
    x, text = torch.randn(1, 3, 16, 4, 6), torch.randn(1, 5, 32)
    with torch.no_grad():
        if folder_kind == "stock":
            made = network(x.transpose(1, 2), torch.tensor([500.0]), text).sample
            return made.transpose(1, 2)
        return network(x, torch.full((1, 3), 0.5), text, frames=torch.arange(3))


def test_stock_diffusers_runs_an_export_without_a_warning(use, wan_folder, tmp_path, caplog):
    torch.save({"generator_ema": wrapped(published_weights(), "fsdp")}, tmp_path / "student.pt")
    assert use("import", tmp_path / "student.pt", "--as", tmp_path / "in")[0] == 0
    assert use("export", tmp_path / "in", "--to", tmp_path / "out", "--original")[0] == 0
    same(load_file(tmp_path / "out" / "original" / "wan.safetensors"), published_weights())
    with caplog.at_level(logging.WARNING):
        stock, found = WanTransformer3DModel.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
    assert not caplog.records and not any(found.values())
    ours, theirs = load_network(tmp_path / "out"), stock
    torch.testing.assert_close(
        forward(ours, "ours"), forward(theirs, "stock"), atol=1e-5, rtol=1e-5
    )
    assert json.loads((tmp_path / "out" / "causal.json").read_text())["source"]["file"]


def test_a_run_is_exported_with_its_sampler(use, tmp_path):
    """A few-step student, and a Stage-1 model, from runs."""
    run = only(prepared(), "stage3_asymmetric_dmd")
    assert use("export", run, "--to", tmp_path / "student")[0] == 0
    said = json.loads((tmp_path / "student" / "causal.json").read_text())
    assert said["source"] == {"run": run.name}
    assert said["sampling"] == {
        "stage": "AsymmetricDMD", "clip_shape": [4, 4, 4, 4], "blocks": [1, 1, 1, 1],
        "shift": 2.0, "sampler": "few_steps", "few_steps": 2, "first_few_steps": 4,
        "first_times": pytest.approx([1.0, 6 / 7, 2 / 3, 0.4]),
        "times": pytest.approx([1.0, 2 / 3]), "guidance": 1.0,
    }  # fmt: skip
    same(weights_in(tmp_path / "student"), weights_in(run / "student"))
    stage1 = only(prepared(), "stage1_teacher_forcing")
    assert use("export", stage1, "--to", tmp_path / "teacher")[0] == 0
    said = json.loads((tmp_path / "teacher" / "causal.json").read_text())["sampling"]
    assert (said["sampler"], said["guidance"]) == ("autoregressive_ode", 2.5)


def test_what_holds_no_wan_is_not_exported(use, tmp_path):
    status, said = use("export", tmp_path, "--to", tmp_path / "new")
    assert status == 1 and "give a run that trained a network" in said
    status, said = use("export", only(prepared(), "clips"), "--to", tmp_path / "new")
    assert status == 1 and not (tmp_path / "new").exists()
