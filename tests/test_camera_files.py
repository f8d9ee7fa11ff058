"""Cameras of published data: each format means what a written-out example says."""

import json

import numpy as np
import pytest

from datamodules.cameras import Stride, inverse, parse_keys, trajectory
from datamodules.curation.camera_files import (
    at_latents,
    cropped,
    normalised,
    parse_walk,
    read_realestate10k,
    read_worldplay,
)
from datamodules.curation.refusal import Refused

# One step forward and then a quarter turn to the right, written out by hand.
FORWARD = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -0.08], [0, 0, 0, 1]]
TURNED = [[0, 0, -1, 0.08], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
HALF = np.array([0.5, 0.9, 0.5, 0.5])
STRIDE = Stride()


def realestate(poses, at=lambda n: 1_000_000 + 33_367 * n, lens=HALF):
    lines = ["https://www.youtube.com/watch?v=abc"]
    for number, pose in enumerate(np.asarray(poses, float)):
        words = [at(number), *lens, 0, 0, *pose[:3].ravel()]
        lines.append(" ".join(map(str, words)))
    return "\n".join(lines) + "\n"


def written(tmp_path, text):
    file = tmp_path / "clip.txt"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_matrices_written_out_are_those_of_the_keys():
    assert trajectory(parse_keys("w"), STRIDE)[1] == pytest.approx(np.array(FORWARD))
    assert trajectory(parse_keys("w, l"), Stride(0.08, 90))[2] == pytest.approx(np.array(TURNED))


def test_realestate10k_is_the_convention_already(tmp_path):
    track = read_realestate10k(written(tmp_path, realestate([np.eye(4), FORWARD, TURNED])))
    assert track.poses == pytest.approx(np.array([np.eye(4), FORWARD, TURNED]))
    assert track.intrinsics == pytest.approx(np.tile(HALF, (3, 1)))
    assert track.seconds and track.at == pytest.approx([0, 0.033367, 0.066734])


@pytest.mark.parametrize("kind", ["sampled", "trained"])
def test_worldplay_s_files_say_camera_to_world_or_the_reverse(tmp_path, kind):
    lens = [[416.0, 0, 416], [0, 432.0, 240], [0, 0, 1]]
    found = {}
    for number, pose in (("0", np.eye(4)), ("4", np.array(FORWARD)), ("8", np.array(TURNED))):
        sampled = {"extrinsic": inverse(pose).tolist(), "K": lens}
        found[number] = sampled if kind == "sampled" else {"w2c": pose.tolist(), "intrinsic": lens}
    track = read_worldplay(written(tmp_path, json.dumps(found)), width=832, height=480)
    assert track.poses == pytest.approx(np.array([np.eye(4), FORWARD, TURNED]))
    assert track.intrinsics == pytest.approx(np.tile([0.5, 0.9, 0.5, 0.5], (3, 1)))
    poses, _ = at_latents(track, 3, fps=16)
    assert poses == pytest.approx(track.poses)


def test_a_walk_of_minwm_is_that_of_our_keys():
    assert parse_walk("right-2, a-1,UP-1") == parse_keys("l*2, a, i")
    for wrong in ("right8", "jump-2", "", "a-1,,b-2"):
        with pytest.raises(ValueError, match="no key"):
            parse_walk(wrong)


def test_a_latent_has_the_camera_of_its_last_pixel_frame(tmp_path):
    walk = trajectory(["w"] * 32, Stride(0.02, 1))
    file = written(tmp_path, realestate(walk, at=lambda n: 5_000_000 + n * 62_500))  # 16 fps
    poses, intrinsics = at_latents(read_realestate10k(file), 9, fps=16)
    assert poses == pytest.approx(walk[::4], abs=1e-9) and intrinsics.shape == (9, 4)
    with pytest.raises(Refused, match="missing"):
        at_latents(read_realestate10k(file), 10, fps=16)


@pytest.mark.parametrize("scale", [0.01, 1.0, 250.0])
def test_clips_of_any_scale_get_one_step(scale):
    poses = trajectory(parse_keys("w*5, l*3, a*8"), Stride(scale, 3))
    scaled, factor = normalised(poses, 0.08)
    assert factor == pytest.approx(0.08 / scale)
    assert scaled == pytest.approx(trajectory(parse_keys("w*5, l*3, a*8"), STRIDE), abs=1e-12)


def test_clips_that_hardly_move_or_jump_are_refused():
    for keys in ("l*8", "w, l*8", "none*4"):
        with pytest.raises(Refused, match="still"):
            normalised(trajectory(parse_keys(keys), STRIDE), 0.08)
    poses = trajectory(["w"] * 12, STRIDE)
    poses[6:, 2, 3] -= 3.0
    with pytest.raises(Refused, match="jump"):
        normalised(poses, 0.08)


def test_a_crop_enlarges_and_off_centre_cameras_are_refused():
    assert cropped(HALF[None], 0.8, 1.0)[0] == pytest.approx([0.625, 0.9, 0.5, 0.5])
    with pytest.raises(Refused, match="off-centre"):
        cropped(np.array([[0.5, 0.9, 0.45, 0.5]]), 1.0, 1.0)


MIRROR = np.diag([-1.0, 1, 1, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("url\n1 2 3\n", "line 2: 3 numbers, not 19"),
        ("url\n1 x 3\n", "line 2: could not convert"),
        ("url\n", "has no cameras"),
        (realestate([np.eye(4), 2 * np.eye(4)]), "camera 1 is not rigid"),
        (realestate([MIRROR]), "camera 0 is not rigid"),
        (realestate([np.full((4, 4), np.nan)]), "camera 0 is not rigid"),
        (realestate([np.eye(4)] * 2, at=lambda n: -n), "not in order"),
        (realestate([np.eye(4)], lens=[0, 1, 0.5, 0.5]), "focal length"),
    ],
)
def test_text_of_another_layout_is_refused_with_the_file(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as refused:
        read_realestate10k(written(tmp_path, text))
    assert "clip.txt" in str(refused.value) and "give the clip the file" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no dict"),
        ("{}", "no numbers of frames"),
        ('{"a": {}}', "no numbers of frames"),
        ('{"0": {"extrinsic": []}}', "frame 0: has no extrinsic and K or w2c and intrinsic"),
        ('{"0": {"w2c": [[1]], "intrinsic": 3}}', "w2c is no matrix of 4 x 4"),
        ('{"0": {"w2c": "x", "intrinsic": 3}}', "w2c is no matrix of 4 x 4"),
    ],
)
def test_json_of_another_layout_is_refused_with_the_file(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as refused:
        read_worldplay(written(tmp_path, text), 832, 480)
    assert "clip.txt" in str(refused.value)
