"""Selection of a run's device, and the messages if it is missing."""

import pytest
import torch
from lightning.fabric.utilities import distributed

from experiments.launch.hardware import Launch, accelerated, prepare, settle
from experiments.launch.shard_workers import _devices
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import resolve
from experiments.verbs import curate, pairs, sample

NONE_HERE = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
VERBS = {
    "openvid_clips": curate.run,
    "vidprom_prompts": curate.plan,
    "causal_pairs": pairs.run,
    "bidirectional_pairs": pairs.plan,
    "sample": sample.run,
}


@NONE_HERE
@pytest.mark.parametrize("name", VERBS)
def test_a_gpu_that_is_not_there_never_becomes_a_cpu(tmp_path, name):
    recipe = resolve(name, "wan1.3b").recipe
    assert recipe["launch"]["accelerator"] == "gpu"
    with pytest.raises(ValueError, match="launch.accelerator: gpu is set, .* set launch.acc"):
        VERBS[name](recipe, RunFolder(tmp_path))


@NONE_HERE
def test_the_device_is_what_there_is_where_nothing_is_forced():
    for accelerator in ("auto", "cpu"):
        recipe = {"seed": 0, "launch": {"accelerator": accelerator}}
        assert prepare(recipe) == torch.device("cpu")


def test_what_needs_no_device_asks_for_none():
    recipe = {"seed": 3, "launch": {"accelerator": "gpu", "threads": 1}}
    assert settle(recipe).accelerator == "gpu"
    assert torch.initial_seed() == 3 and torch.get_num_threads() == 1


def test_lightning_leaves_the_recipes_threads(monkeypatch):
    """It gives each process its share of a node's cores, where nothing in the environment says so;
    sums on more threads differ by rounding.
    """
    monkeypatch.setattr(distributed, "_suggested_max_num_threads", lambda _: 2)
    for threads, expected in ((1, 1), (0, 2)):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        settle({"seed": 0, "launch": {"threads": threads}})
        distributed._set_num_threads_if_needed()
        assert torch.get_num_threads() == expected


def test_fewer_gpus_than_wanted_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert _devices(Launch(devices=2)) == ["4", "6"]
    with pytest.raises(ValueError, match=r"launch.devices: 3 are wanted, 2 are there \(4, 6\)"):
        _devices(Launch(devices=3))


@pytest.mark.parametrize("wish", ["compile", "cuda_graphs"])
def test_a_wish_that_this_device_cannot_fulfil_is_told(wish, caplog):
    network, cpu = torch.nn.Linear(1, 1), torch.device("cpu")
    assert accelerated(network, Launch(), cpu) is network and not caplog.text
    assert accelerated(network, Launch(**{wish: True}), cpu) is network
    assert "have no effect here" in caplog.text and "Linear on cpu" in caplog.text
