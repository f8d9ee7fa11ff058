"""Videos with files of cameras, from a table to a world model of the scale wan1.3b_camera."""

import csv
import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_camera_files import realestate
from videos import moving

from datamodules.cameras import Stride, inverse, parse_keys, relative, to_stored, trajectory
from datamodules.curation.decoding import ClipSpec, decode
from datamodules.curation.posed_videos import Item, Row, decode_posed, read_table
from datamodules.curation.refusal import Refusal, Refused
from datamodules.shards.reader import open_shards
from experiments.__main__ import main
from experiments.checkpoints.networks import load_network
from experiments.runs.recipe import Library, resolve
from experiments.verbs import fit

LATENTS, STRIDE = 4, Stride(0.08, 3)
SPEC = ClipSpec(1 + 4 * (LATENTS - 1), 16, 16, 32, (1.6, 2.1), 1.0, 16)
WALK = trajectory(parse_keys("w*3, wl*3, d*10"), Stride(0.3, 4))
SCALE = """
extends: wan1.3b_camera
wan: {wan}
posed: {data}
clip_shape: [4, 16, 2, 4]
blocks: 2
intervals: 4
sampling: {{count: 1, intervals: 2}}
data: {{clips: 3, prompts: 3, heldout: 1}}
clips: {{recipe: posed_clips, curate.heldout_percent: 25, curate.windows: 2}}
prompts: {{recipe: posed_prompts, curate.heldout_percent: 25}}
heldout: {{recipe: posed_heldout, curate.heldout_percent: 25}}
stages:
  base: {{steps: 2, batch: 1, learning_rate: 1.0e-3}}
  stage1: {{steps: 2, batch: 1, learning_rate: 1.0e-3}}
  causal_cd: {{steps: 2, batch: 1, learning_rate: 1.0e-3}}
  stage3: {{steps: 3, batch: 1, learning_rate: 1.0e-3, critic_steps: 1, ema_start: 1}}
launch: {{threads: 1, accelerator: cpu, devices: 1, strategy: auto, workers: 0, panel_every: 2}}
"""


def every_latent(n: int) -> int:
    """Microseconds of camera n, one for every latent frame of a clip of 16 fps."""
    return 3_000_000 + 250_000 * n


def worldplay(poses) -> str:
    lens = [[52.0, 0, 52], [0, 50.4, 28], [0, 0, 1]]
    back = [inverse(each).tolist() for each in poses]
    return json.dumps({str(4 * n): {"extrinsic": m, "K": lens} for n, m in enumerate(back)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six videos with cameras, and rows that will not do."""
    home = tmp_path_factory.mktemp("posed")
    rows = []
    for number in range(6):
        name = f"walk{number}"
        (home / f"{name}.mp4").write_bytes(moving(20, fps=16, width=104))
        if number % 2:
            (home / f"{name}.json").write_text(worldplay(WALK[:LATENTS]))
        else:
            (home / f"{name}.txt").write_text(realestate(WALK, at=every_latent))
        rows.append([f"{name}.mp4", f"{name}.{'json' if number % 2 else 'txt'}", f"a walk, {name}"])
    (home / "still.txt").write_text(realestate([WALK[0]] * LATENTS, at=every_latent))
    (home / "off.txt").write_text(realestate(WALK, at=every_latent, lens=[0.5, 0.9, 0.4, 0.5]))
    (home / "few.txt").write_text(realestate(WALK[:2], at=every_latent))
    (home / "torn.txt").write_text("url\n1 2 3\n")
    (home / "fast.mp4").write_bytes(moving(30, fps=24, width=104))
    rows += [
        ["walk0.mp4", "still.txt", "hm"], ["../walk1.mp4", "walk1.json", "outside"],
        ["walk2.mp4", "", "no cameras"],
    ]  # fmt: skip
    with open(home / "clips.csv", "w", newline="") as file:
        csv.writer(file).writerows([["video", "cameras", "caption"], *rows])
    return home


def item(folder, video, cameras, window=0):
    return Item(Row(video, cameras, "words"), folder, SPEC, LATENTS, STRIDE, window)


@pytest.mark.parametrize(("video", "cameras"), [("walk0", "walk0.txt"), ("walk1", "walk1.json")])
def test_a_clip_has_the_cameras_of_its_latents_scaled_to_the_step(folder, video, cameras):
    found = decode_posed(item(folder, f"{video}.mp4", cameras))
    assert found.clip.shape == (13, 16, 32, 3)
    wanted = relative(WALK[:LATENTS])
    wanted[:, :3, 3] *= 0.08 / 0.3
    assert found.poses == pytest.approx(to_stored(wanted), abs=1e-6)
    assert found.scale == pytest.approx(0.08 / 0.3)
    # 104 x 56 covers 32 x 16 at 32 x 17: nothing of the width and a row of the height is cut
    assert found.intrinsics == pytest.approx(np.tile([0.5, 0.9 * 17 / 16, 0.5, 0.5], (4, 1)))


@pytest.mark.parametrize(
    ("cameras", "keys"), [("right-1, W-1,a-1, up-5", "l, w, a"), ("right-3", "l*3")]
)
def test_a_walk_by_keys_is_not_scaled(folder, cameras, keys):
    """Nor must it move from its place: turns on the spot are known as well as steps."""
    found = decode_posed(item(folder, "walk1.mp4", cameras))
    wanted = trajectory(parse_keys(keys), STRIDE)
    assert found.scale == 1 and found.poses == pytest.approx(to_stored(wanted), abs=1e-6)
    wide = np.array([969.69697 / 1920, 969.69697 / 1080 * 17 / 16, 0.5, 0.5])
    assert found.intrinsics == pytest.approx(np.tile(wide, (4, 1)), abs=1e-4)


@pytest.mark.parametrize("kind", ["txt", "json", "keys"])
def test_the_windows_of_a_long_video(folder, kind):
    """A second clip of 4 latent frames begins with pixel frame 16 of 16 fps, and its camera."""
    name, walk = f"long-{kind}", trajectory(parse_keys("w*3, wl*3, d*10"), STRIDE)
    (folder / f"{name}.mp4").write_bytes(moving(32, fps=16, width=104))
    cameras = {"txt": f"{name}.txt", "json": f"{name}.json", "keys": "w-3, l-4, d-10"}[kind]
    if kind == "txt":
        (folder / cameras).write_text(realestate(walk, at=every_latent))
    elif kind == "json":
        (folder / cameras).write_text(worldplay(walk[:8]))
    else:
        walk = trajectory(parse_keys("w*3, l*4, d*10"), STRIDE)
    whole = decode((folder / f"{name}.mp4").read_bytes(), replace(SPEC, frames=32))
    for window in (0, 1):
        found = decode_posed(item(folder, f"{name}.mp4", cameras, window))
        first = LATENTS * window
        assert np.array_equal(found.clip, whole[4 * first : 4 * first + 13])
        wanted = relative(walk[first : first + LATENTS])
        assert found.poses == pytest.approx(to_stored(wanted), abs=1e-6)
    with pytest.raises(Refused, match="too short|missing"):
        decode_posed(item(folder, f"{name}.mp4", cameras, 2))


def test_cameras_that_may_not_be_read_are_refused(folder, monkeypatch):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("datamodules.curation.posed_videos.read_worldplay", forbidden)
    with pytest.raises(Refused, match="cameras: unreadable.*Permission denied"):
        decode_posed(item(folder, "walk1.mp4", "walk1.json"))


@pytest.mark.parametrize(
    ("video", "cameras", "reason"),
    [
        ("walk0.mp4", "still.txt", "cameras: still"),
        ("walk0.mp4", "off.txt", "cameras: off-centre"),
        ("walk0.mp4", "few.txt", "cameras: missing"),
        ("walk0.mp4", "torn.txt", "cameras: unreadable"),
        ("walk0.mp4", "nowhere.txt", "cameras: unreadable"),
        ("walk0.mp4", "walk0.mp4", "cameras: unknown"),
        ("walk1.mp4", "l*3", "cameras: unknown"),
        ("fast.mp4", "walk1.json", "cameras: rate"),
        ("torn.txt", "walk0.txt", "damaged"),
    ],
)
def test_what_will_not_do_is_refused_with_its_reason(folder, video, cameras, reason):
    with pytest.raises(Refused) as refused:
        decode_posed(item(folder, video, cameras))
    assert refused.value.reason == reason


def test_a_table_keeps_to_its_folder(folder):
    refused = [row for row in read_table(folder / "clips.csv") if isinstance(row, Refusal)]
    assert [(row.name, row.reason) for row in refused] == [
        ("../walk1.mp4", "table: elsewhere"), ("walk2.mp4", "table: empty")
    ]  # fmt: skip


@pytest.mark.slow
def test_a_world_model_is_made_of_wan_and_posed_videos(folder, tmp_path, wan_folder):
    scales = Path(shutil.copytree(Library().scales, tmp_path / "scales"))
    (scales / "test.yaml").write_text(SCALE.format(wan=wan_folder, data=folder))
    library, runs = Library(scales=scales), tmp_path / "runs"
    how = ["--scale", "test", "--with-needs", "--runs", str(runs)]
    student = ["needs.student={recipe: stage3_asymmetric_dmd, init: causal_cd, few_steps: 4}"]
    assert main(["sample", "sample", "few_steps=4", *student, *how], library) == 0
    (clips,) = runs.glob("posed_clips-*")
    shards = open_shards(clips / "shards")
    assert shards.manifest["fields"]["poses"]["shape"] == [LATENTS, 3, 4]
    assert shards.manifest["cameras"]["step"] == 0.08
    (base,) = runs.glob("posed_base-*")
    network, stock = load_network(base), load_network(wan_folder)
    assert network.config.cameras and not network.config.motion
    learnt = network.blocks[0].attn1.to_prope.weight
    assert learnt.abs().max() > 0, "cameras were trained"
    moved = network.patch_embedding.weight - stock.patch_embedding.weight
    assert 0 < moved.abs().max() < 0.1, "from the weights of the folder"
    (samples,) = runs.glob("sample-*")
    made = open_shards(samples / "shards")
    assert made.manifest["fields"]["poses"]["shape"] == [LATENTS, 3, 4]
    assert len(list(samples.rglob("*.mp4"))) == 1
    assert torch.isfinite(torch.from_numpy(made[0]["latents"].astype(np.float32))).all()


def test_a_network_from_scratch_is_given_its_arguments_at_once():
    recipe = deepcopy(resolve("base", "tiny").recipe)
    recipe["fit"]["student_with"] = {"cameras": True}
    with pytest.raises(ValueError, match="fit.student_with: there is no needs.student"):
        fit.check(recipe)


def test_a_student_is_either_new_or_given():
    recipe = deepcopy(resolve("base", "tiny").recipe)
    recipe["needs"]["student"] = "base"
    with pytest.raises(ValueError, match="network, needs.student: .* remove one"):
        fit.check(recipe)
