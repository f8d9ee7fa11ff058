"""Which of a checkpoint's networks is imported, and that it is one that can generate."""

import logging
import shutil

import pytest
import torch
from safetensors.torch import save_file
from test_exchange import published_weights, same, weights_in

from experiments.checkpoints.wan_keys import to_diffusers, to_published


@pytest.mark.parametrize(
    "average, raw",
    [
        (("ema",), ("model",)),
        (("model_ema",), ("model",)),
        (("state_dict_ema",), ("state_dict",)),
        (("ema", "shadow"), ("network",)),
        (("callbacks", "EMA", "ema_weights.average"), ("state_dict",)),
    ],
)
def test_an_average_is_taken_and_said_under_any_name(use, tmp_path, caplog, average, raw):
    caplog.set_level(logging.INFO)
    networks = {average: published_weights(1), raw: published_weights(2)}
    checkpoint = {"step": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}
    for (*above, last), weights in networks.items():
        at = checkpoint
        for name in above:
            at = at.setdefault(name, {})
        at[last] = weights
    torch.save(checkpoint, tmp_path / "all.pt")
    for flag, key in (("", average), ("--raw", raw), ("--key=" + ".".join(raw), raw)):
        new = tmp_path / f"new{flag.replace('/', '_')}"
        assert use("import", tmp_path / "all.pt", "--as", new, *filter(None, [flag]))[0] == 0
        same(to_published(weights_in(new)), networks[key])
        assert f"using {'.'.join(key)}, " in caplog.text


def test_one_of_several_students_is_asked_for(use, tmp_path):
    networks = {"first": published_weights(1), "second": published_weights(2)}
    torch.save(networks, tmp_path / "two.pt")
    status, said = use("import", tmp_path / "two.pt", "--as", tmp_path / "new")
    assert status == 1 and "2 raw networks; choose one by --key: first (--raw), second" in said
    words = ["import", tmp_path / "two.pt", "--as", tmp_path / "new", "--key", "second"]
    assert use(*words)[0] == 0
    same(to_published(weights_in(tmp_path / "new")), networks["second"])


def test_torchs_format_of_before_1_6_is_read(use, tmp_path):
    weights = published_weights()
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert use("import", tmp_path / "old.pt", "--as", tmp_path / "new")[0] == 0
    same(to_published(weights_in(tmp_path / "new")), weights)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e6])
def test_weights_that_cannot_be_are_neither_imported_nor_exported(use, wan_folder, tmp_path, value):
    weights = published_weights()
    weights["blocks.0.ffn.0.weight"][0, 0] = value
    torch.save(weights, tmp_path / "bad.pt")
    status, said = use("import", tmp_path / "bad.pt", "--as", tmp_path / "new")
    assert status == 1 and f"{tmp_path / 'bad.pt'}: blocks.0.ffn.net.0.proj.weight is" in said
    shutil.copytree(wan_folder / "transformer", tmp_path / "copy")
    (file,) = (tmp_path / "copy").glob("*.safetensors")
    save_file(to_diffusers(weights), file)
    status, said = use("export", tmp_path / "copy", "--to", tmp_path / "new")
    assert status == 1 and "blocks.0.ffn.net.0.proj.weight is" in said
    assert not (tmp_path / "new").exists()
