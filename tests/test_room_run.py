"""The camera world through all stages, at the smallest size: everything is connected."""

import json
from itertools import pairwise

import numpy as np
import pytest

from datamodules.cameras import from_stored, keys_of_label, label_of, placed
from datamodules.shards.reader import open_shards
from datamodules.shards.writer import ShardWriter
from experiments.__main__ import main
from experiments.generation.generation import require_network
from experiments.generation.walk import camera_of
from experiments.runs.recipe import resolve
from experiments.worlds.room.walks import REACH, Room

SMALL = {
    "clip_shape": "[4,24,4,4]", "room.frames": "4", "data.clips": "16", "data.heldout": "8",
    "data.prompts": "16", "data.reference": "2", "data.statistics": "8", "sampling.count": "2",
    "sampling.batch": "2", "sampling.intervals": "2", "room_scoring.clips": "2",
    "room_scoring.metrics": "[room.psnr,room.blended]", "stages.base.steps": "2",
    "stages.base.batch": "4", "stages.real_score.steps": "2", "stages.real_score.batch": "4",
    "stages.stage1.steps": "2", "stages.stage1.batch": "4", "stages.causal_cd.steps": "2",
    "stages.causal_cd.batch": "4", "stages.causal_cd.intervals": "4", "stages.stage3.steps": "6",
    "stages.stage3.batch": "4", "launch.panel_every": "1", "launch.checkpoint_every_s": "0",
}  # fmt: skip
NETWORK = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 1}
SETTINGS = [f"{key}={value}" for key, value in SMALL.items()]
for _net in ("network", "score_network"):
    SETTINGS += [f"{_net}.{key}={value}" for key, value in NETWORK.items()]


def run(folder, verb, recipe, *settings):
    words = [verb, recipe, "--scale", "room", *SETTINGS, *settings, "--with-needs"]
    return main([*words, "--runs", str(folder)])


def only(folder, recipe):
    (found,) = folder.glob(f"{recipe}-*")
    return found


@pytest.mark.slow
def test_a_walk_is_learnt_sampled_and_scored(tmp_path):
    assert run(tmp_path, "score", "score_room") == 0
    student = only(tmp_path, "stage3_asymmetric_dmd") / "student"
    config = json.loads((student / "config.json").read_text())
    assert config["cameras"] is True and config["_class_name"] == "WanTransformer3DModel"
    prompts = open_shards(only(tmp_path, "room_heldout") / "shards")
    sampled = open_shards(only(tmp_path, "sample") / "shards")
    for name in ("poses", "intrinsics"):
        assert np.array_equal(sampled.read(0, [name])[name], prompts.read(2, [name])[name])
    scores = (only(tmp_path, "score_room") / "scores.jsonl").read_text().splitlines()
    assert [json.loads(line)["metric"] for line in scores] == ["room.psnr", "room.blended"]


def test_shards_hold_the_cameras_of_the_walk_and_what_captions_do_not_say(tmp_path):
    assert run(tmp_path, "curate", "room_heldout") == 0
    shards = open_shards(only(tmp_path, "room_heldout") / "shards")
    assert shards.manifest["cameras"]["convention"] == "opencv-w2c"
    assert camera_of(shards).walls == ((-REACH, REACH),) * 2
    sample, room = shards.read(3, ["poses", "intrinsics", "video", "latents"]), Room(frames=4)
    walk = room.walk("heldout", 0, 3)
    assert np.array_equal(sample["video"], walk.video) and sample["latents"].shape == (4, 24, 4, 4)
    assert sample["intrinsics"].tolist() == [[0.5] * 4] * 4
    info = sample["info"]
    poses = from_stored(sample["poses"]) @ placed(*info["start"])
    assert poses == pytest.approx(walk.poses, abs=1e-5)
    assert info["dark"] == walk.dark.tolist() and walk.paint in info["caption"]
    for (before, after), key in zip(pairwise(poses), info["keys"], strict=True):
        assert keys_of_label(label_of(before, after, room.stride)) in (frozenset(key), frozenset())


def test_cameras_that_a_network_would_ignore_are_refused(tmp_path, capsys):
    without = ["network.cameras=false", "network.motion=false"]
    assert run(tmp_path, "fit", "base", *without) == 1
    assert "network.cameras=true" in capsys.readouterr().err


def test_motion_without_cameras_is_refused_before_anything_is_made(tmp_path, capsys):
    assert run(tmp_path, "fit", "base", "network.cameras=false") == 2
    said = capsys.readouterr().err
    assert "nothing was started" in said and "set network.cameras=true" in said


def test_a_set_without_the_cameras_that_a_network_needs_is_refused(tmp_path):
    """Or with too few of them."""
    folder, text = tmp_path / "shards", np.zeros((6, 32), np.float16)
    poses = np.broadcast_to(np.eye(3, 4, dtype=np.float32), (4, 3, 4))
    for name, arrays in (("plain", {}), ("posed", {"poses": poses})):
        with ShardWriter(folder / name, "prompts", about={}, negative=text) as writer:
            writer.write("one", {"text": text} | arrays, {"caption": "a room"})
    section = resolve("base", "room").recipe["network"]
    for name, frames, said in (("plain", 4, "no poses"), ("posed", 5, "walks of 4 frames")):
        shards = open_shards(folder / name)
        with pytest.raises(ValueError, match=said):
            require_network("student", section, "clip_shape", (frames, 24, 4, 4), shards)
