"""A run begun by older code resumes with the current code.

`fixtures/run_of_8879c7c` was written by commit 8879c7c: causal CD of the tiny scale with the
smallest network, interrupted at step 13 of 40, beside the runs that it needs.
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.__main__ import main

BEGUN = Path(__file__).parent / "fixtures" / "run_of_8879c7c"
RUN = "stage2_causal_cd-9af996de"
DONE, STEPS = 13, 40
# Equal to the last bit where the checkpoint was written; other processors round otherwise, and
# the steps that are left amplify it. Ten more steps change the weights by some hundredths.
TOLERANCE = 1e-3


def finished(folder: Path, *without: str) -> Path:
    """The run, copied into `folder` but for some of its files, brought to its end."""
    shutil.copytree(BEGUN, folder, ignore=shutil.ignore_patterns(*without))
    assert main(["fit", str(folder / RUN)]) == 0
    return folder / RUN


def losses(run: Path) -> dict[int, float]:
    """By step, of those that today's code has taken."""
    events = EventAccumulator(str(run / "tb")).Reload()
    return {event.step: event.value for event in events.Scalars("train/loss")}


def test_a_run_begun_by_older_code_goes_on_and_ends_as_an_uninterrupted_one(tmp_path):
    resumed, whole = finished(tmp_path / "resumed"), finished(tmp_path / "whole", "checkpoints")
    for run in (resumed, whole):
        checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == STEPS

    rest, all_losses = losses(resumed), losses(whole)
    assert list(rest) == list(range(DONE, STEPS)) and list(all_losses) == list(range(STEPS))
    assert rest == pytest.approx({step: all_losses[step] for step in rest}, rel=TOLERANCE)

    (one,), (other,) = ((run / "student").glob("*.safetensors") for run in (resumed, whole))
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert (weight - other[name]).norm() <= TOLERANCE * other[name].norm(), name
