"""Resuming after kills, interruptions, divergence and full disks: real processes, equal weights."""

import random
import re
import signal
import time

import numpy as np
import pytest
import torch
from minimal_runs import Verb, copied, only, prepared, rewritten, run, weights

from datamodules.order import rank_batch
from datamodules.shards.reader import open_shards
from datamodules.signals import STOP

STAGES = ["stage1_teacher_forcing", "stage2_causal_cd", "stage3_asymmetric_dmd"]


def changes(path) -> int:
    """A number that differs after every save."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def wait_for_saves(verb: Verb, path, count: int) -> None:
    """Until the checkpoint has been written `count` times, or the process has ended."""
    seen, last, began = 0, changes(path), time.monotonic()
    while seen < count and verb.process.is_alive():
        assert time.monotonic() - began < 60, verb.said
        now = changes(path)
        seen, last = seen + (now != last), now
        time.sleep(0.001)


def started(tmp_path, stage: str):
    """The prepared runs without this stage's, and where its checkpoint will be."""
    runs = copied(tmp_path, stage)
    return runs, runs / only(prepared(), stage).name / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("stage", STAGES)
def test_killed_anywhere_ends_the_same(tmp_path, stage):
    """SIGKILL twice, at points that a seed chooses: in a step, in a save, in between."""
    runs, last = started(tmp_path, stage)
    chance, killed, steps = random.Random(stage), 0, []
    for _ in range(2):
        verb = Verb(runs, "fit", stage)
        wait_for_saves(verb, last, chance.randrange(1, 4))
        time.sleep(chance.uniform(0, 0.03))
        verb.send(signal.SIGKILL)
        killed += verb.wait() == -signal.SIGKILL
        steps.append(torch.load(last, weights_only=True)["global_step"])
    assert killed == 2, "the run is too short to be killed twice: give it more steps"
    assert steps == sorted(steps) and 0 < steps[0] < steps[-1]

    verb = Verb(runs, "fit", stage)
    assert verb.wait() == 0, verb.said
    made = only(runs, stage)
    assert weights(made) == weights(only(prepared(), stage))
    assert [file.name for file in last.parent.iterdir()] == [last.name], "nothing half-written"


@pytest.mark.parametrize("stage", STAGES)
def test_killed_while_handing_on_ends_the_same(tmp_path, stage):
    """All steps are done and saved, half of the student is written, nothing says "done"."""
    runs = copied(tmp_path)
    made = only(runs, stage)
    (made / "done.json").unlink()
    (half,) = (made / "student").rglob("*.safetensors")
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    verb = Verb(runs, "fit", stage)
    assert verb.wait() == 0, verb.said
    assert weights(made) == weights(only(prepared(), stage))


def test_killed_curation_ends_the_same(tmp_path):
    """A shard set is whole or absent; written again, it is the same bytes."""
    runs, many = copied(tmp_path, "clips", "prompts"), "data.clips=1500"
    verb = Verb(runs, "curate", "clips", many)
    began = time.monotonic()
    while not list(runs.glob("clips-*/shards/000000.tar")) and time.monotonic() - began < 60:
        time.sleep(0.001)
    verb.send(signal.SIGKILL)
    assert verb.wait() == -signal.SIGKILL
    with pytest.raises(FileNotFoundError, match="its writer was stopped"):
        open_shards(only(runs, "clips") / "shards")
    assert not only(runs, "clips").joinpath("done.json").exists()

    again, whole = (
        run(runs, "curate", "clips", many),
        run(tmp_path / "other", "curate", "clips", many),
    )
    assert open_shards(again / "shards").fingerprint == open_shards(whole / "shards").fingerprint


@pytest.mark.parametrize("number", STOP)
def test_interrupted_says_what_was_saved_and_how_to_go_on(tmp_path, number):
    stage = "stage3_asymmetric_dmd"
    runs, last = started(tmp_path, stage)
    verb = Verb(runs, "fit", stage)
    wait_for_saves(verb, last, 2)
    verb.send(number)
    assert verb.wait() == 130, verb.said
    made = only(runs, stage)
    assert re.search(rf"{made.name} interrupted: saved \d+ s ago in {last}", verb.said)
    assert verb.said.count(f"{made.name} interrupted:") == 1, "said once"
    assert "interrupted: saved" in (made / "log.txt").read_text()
    assert "Resume with the same command" in verb.said and f"fit {made}" in verb.said
    assert "Traceback" not in verb.said
    assert not (made / "failed.txt").exists() and not (made / "student").exists()

    assert Verb(runs, "fit", stage).wait() == 0
    assert weights(made) == weights(only(prepared(), stage))


def test_nan_stops_with_the_cure_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    """One clip holds a NaN; the step that meets it is known."""
    runs, stage, step = copied(tmp_path, "stage1"), "stage1_teacher_forcing", 3
    clips = only(runs, "clips")
    bad = rank_batch(step, count=24, batch=4, seed=0)[0]
    key = f"train-{bad:06d}"

    def poison(sample):
        if sample["key"] == key:
            sample["latents"][1, 0, 0, 0] = np.nan

    monkeypatch.setattr("datamodules.shards.shard_file.fault", lambda *_: "")  # an older writer
    verb = Verb(runs, "fit", stage, rewritten(clips, tmp_path / "poisoned", poison))
    assert verb.wait() == 1
    assert f"step {step}: the loss is nan; the data of {tmp_path / 'poisoned'}" in verb.said
    assert f"not finite: latents of {key}." in verb.said and "Traceback" not in verb.said
    assert "the learning rate is not the cause" in verb.said
    made = only(runs, stage)
    assert (
        "the loss is nan" in (made / "failed.txt").read_text() and not (made / "student").exists()
    )
    saved = torch.load(made / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == step
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())


def test_full_disk_keeps_the_old_checkpoint(tmp_path):
    """The system refuses to write as much as a checkpoint; with room again the run goes on."""
    stage = "stage2_causal_cd"
    runs, last = started(tmp_path, stage)
    verb = Verb(runs, "fit", stage)
    wait_for_saves(verb, last, 2)
    verb.send(signal.SIGINT)
    assert verb.wait() == 130
    before = last.read_bytes()

    verb = Verb(runs, "fit", stage, file_limit=len(before) // 2)
    assert verb.wait() == 1
    assert f"{last}: checkpoint not written, the previous one is kept" in verb.said
    assert "free disk space" in verb.said and "Traceback" not in verb.said
    assert last.read_bytes() == before
    assert [file.name for file in last.parent.iterdir()] == [last.name]

    assert Verb(runs, "fit", stage).wait() == 0
    assert weights(only(runs, stage)) == weights(only(prepared(), stage))
