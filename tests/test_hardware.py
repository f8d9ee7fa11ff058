"""The device that a run was given, and what is said where it is not there."""

import pytest
import torch

from experiments import curate, pairs, sample
from experiments.folder import RunFolder
from experiments.launch.hardware import prepare, settle
from experiments.recipe import resolve

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
    with pytest.raises(ValueError, match="launch.accelerator: gpu is wanted, .* set launch.acc"):
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
