"""The metrics of the room: exact on real walks, and worthless clips are told apart."""

import numpy as np
import pytest
import torch

from datamodules.cameras import placed
from datamodules.shards.reader import ShardWriter
from experiments.generation.codec import autoencoder_of
from experiments.metrics.registry import METRICS, NotApplicable
from experiments.worlds.room import score, source
from experiments.worlds.room.context import Commanded, View, apart
from experiments.worlds.room.metrics import MIRRORED, keys, shift
from experiments.worlds.room.render import LIGHTS
from experiments.worlds.room.score import corrupted
from experiments.worlds.room.walks import KEYS, Room, step
from lightning_modules.networks.encoders import PatchTransform, measure_patches

COLOURS = {"pixel_channels": 3, "opponent": True}
ROOM = Room(frames=6)
WORDS = ["a", "room", "in", "primary", "secondary", "colours"]


def autoencoded(videos: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(videos)
    vae = PatchTransform(*measure_patches([pixels], [16, 4, 4], **COLOURS), [16, 4, 4], **COLOURS)
    return vae.decode(vae.encode(pixels)).numpy()


def view_of(walks, videos) -> View:
    commanded = [Commanded(each.paint, frozenset(each.others), each.poses) for each in walks]
    return View(videos, commanded, ROOM, 0)


@pytest.fixture(scope="module")
def walks():
    return [ROOM.walk("heldout", 5, number) for number in range(4)]


@pytest.fixture(scope="module")
def real(walks) -> View:
    return view_of(walks, autoencoded(np.stack([walk.video for walk in walks])))


def value(view: View, name: str) -> float:
    return METRICS[f"room.{name}"].compute(view).value


@pytest.mark.slow
def test_the_gate_on_real_walks_through_the_autoencoder(real):
    away = apart(real.found, real.commanded)
    assert np.median(away[..., 0]) < 0.1 * ROOM.step and np.median(away[..., 1]) < 1.5
    assert value(real, "keys") >= 0.9 and value(real, "sides") == 1
    assert METRICS["room.keys"].compute(real).extra["mirrored"] < 0.7


def test_the_lamp_is_read_off_the_picture(real, walks):
    assert np.array_equal(real.light > 0.5, np.stack([walk.dark for walk in walks]))
    assert value(real, "blended") == 0
    half, between = real.videos.copy(), (1 + LIGHTS[1]) / 2
    half[:, 2] = (real.rendered[:, 2] * between * 255).astype(np.uint8)
    assert value(view_of(walks, half), "blended") == pytest.approx(1 / 5)
    switched = np.diff(np.stack([walk.dark for walk in walks]).astype(int)) != 0
    assert value(real, "switches") == pytest.approx(switched.mean())


def test_the_floors_are_below_the_ceiling(real, walks):
    floors = [view_of(walks, corrupted(real.videos, how)) for how in ("still", "other_walk")]
    # a walk that stands still is its own floor, so only the mean over walks tells
    assert value(real, "psnr") > max(value(floor, "psnr") for floor in floors) + 1
    assert np.array_equal(floors[0].videos[:, 3], real.videos[:, 0])


@pytest.mark.parametrize("lit", [1.0, LIGHTS[1]], ids=["lamp on", "switched"])
def test_a_picture_moves_against_the_camera(lit):
    """By columns, whatever the lamp does; a picture that stands still obeys nothing."""
    noise = np.random.default_rng(0).uniform(20, 255, (32, 64, 3)).astype(np.float32)
    for moved in (-9, -1, 0, 4, 14):
        assert shift(noise[:, 16:48], lit * noise[:, 16 - moved : 48 - moved]) == moved
    turns = [ROOM.walk("heldout", 5, n, [frozenset(key)] * 5) for n, key in enumerate("lljj")]
    view = view_of(turns, autoencoded(np.stack([walk.video for walk in turns])))
    assert value(view, "picture") == 1
    half = view.videos.copy()
    half[2] = half[2, :1]  # one of two that turn to the left stands still
    by_key = METRICS["room.picture"].compute(view_of(turns, half)).extra
    assert by_key == {"key_l": 1, "key_j": 0.5}
    assert METRICS["room.keys"].compute(view).extra.keys() == {"mirrored", "key_l", "key_j"}
    assert value(view_of(turns, corrupted(view.videos, "still")), "picture") == 0
    assert value(view_of(turns, view.videos[:, ::-1]), "picture") == 0
    stood = [ROOM.walk("heldout", 5, n, [frozenset()] * 5) for n in range(4)]
    with pytest.raises(NotApplicable, match="sideways"):
        METRICS["room.picture"].compute(view_of(stood, view.videos))


def test_mirrored_keys_are_refused(walks):
    room, turns = Room(frames=9), [4, 4, 5, 5, 2, 2, 3, 3]

    def places(order):
        poses = [placed(0, 0, 10)]
        for key in order:
            poses.append(step(poses[-1], KEYS[key], room.stride))
        return poses

    commanded = [Commanded("primary", frozenset(), np.stack(places(turns)))] * 3
    swapped = np.stack(places(MIRRORED[turns]))
    view = View(np.zeros((3, 9, 8, 8, 3), np.uint8), commanded, room, 0)
    wrong = Commanded("primary", frozenset(), swapped).places
    view.__dict__["found"] = np.stack([wrong] * 3)
    with pytest.raises(ValueError, match="mirrored"):
        keys(view)
    view.__dict__["found"] = view.commanded
    view.__dict__.pop("seen_keys")
    assert keys(view).value == 1


def test_a_walk_that_comes_back_is_compared_with_itself():
    room, poses = Room(frames=5), [placed(0, 0, 10)]
    for key in ("j", "j", "l", "l"):
        poses.append(step(poses[-1], frozenset(key), room.stride))
    walk = Commanded("primary", frozenset(), np.stack(poses))
    videos = np.zeros((1, 5, 16, 16, 3), np.uint8)
    videos[0, 4] = 8
    view = View(videos, [walk], room, 0)
    view.__dict__["light"] = np.zeros((1, 5))
    assert value(view, "revisit") == pytest.approx((8 + 0) / 2)  # frames 0 and 4, 1 and 3
    away = Commanded("primary", frozenset(), np.stack(poses[:3]))
    with pytest.raises(NotApplicable):
        METRICS["room.revisit"].compute(View(videos[:, :3], [away], room, 0))


def test_a_full_turn_ends_where_it_began():
    """The last frame counts, under either lamp; another walk's, or one a turn too far, do not."""
    turns = [ROOM.walk("heldout", 5, number, [frozenset("l")] * 24) for number in range(4)]
    view = view_of(turns, autoencoded(np.stack([walk.video for walk in turns])))
    assert view.videos.shape[1] == 25 and value(view, "loop") == 1
    assert METRICS["room.loop"].compute(view).extra["nearest_in_the_mean"] == 0
    assert value(view_of(turns, corrupted(view.videos, "other_walk")), "loop") <= 0.25
    late = np.roll(view.videos, 1, 1)
    assert value(view_of(turns, late), "loop") == 0
    assert METRICS["room.loop"].compute(view_of(turns, late)).extra["nearest_in_the_mean"] == 345
    short = view_of([ROOM.walk("heldout", 5, 0, [frozenset("l")] * 23)], view.videos[:1, :24])
    with pytest.raises(NotApplicable, match="ends with it"):
        METRICS["room.loop"].compute(short)


def test_keys_of_all_walks_are_the_rooms():
    settings = {"room": {}, "kept": [16, 4, 4], "keys": "l*24, none, w*2",
                "text": {"words": WORDS, "length": 6, "dim": 8, "seed": 0}}  # fmt: skip
    source.check(settings)
    for wrong, said in (("wl*3", "'lw': this room has, one at a time, w, s"), ("x", "no key 'x'"),
                       ("i*2", "'i': this room has")):  # fmt: skip
        with pytest.raises(ValueError, match=f"^curate.keys: .*{said}"):
            source.check(settings | {"keys": wrong})


def test_colours_are_turned_without_loss():
    video = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 2, 8, 16, 3), np.uint8))
    whole = PatchTransform([0.0] * 192, 1.0, 64, **COLOURS)
    assert (whole.decode(whole.encode(video)).int() - video.int()).abs().max() <= 1
    with pytest.raises(ValueError, match="one for each"):
        PatchTransform([0.0] * 20, 1.0, [16, 4], **COLOURS)
    with pytest.raises(ValueError, match="3 pixel_channels"):
        PatchTransform([0.0] * 16, 1.0, 16, opponent=True)


def test_samples_that_began_anywhere_are_refused():
    """Where in the room they are is what their cameras are compared with."""

    class Samples(list):
        manifest, folder, fields = {"given": 0}, "sample-1", ("poses", "latents")

    with pytest.raises(ValueError, match="nothing told the student where.*sample.given=1"):
        score._read(Samples(range(4)), 0, 4)


def test_walks_are_not_judged_by_clips_of_another_world(tmp_path):
    with ShardWriter(tmp_path / "shards", "videos", about={}) as writer:
        video = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8, 1)
        writer.write("a", {"video": video}, {"caption": "a digit"})
    with pytest.raises(ValueError, match=r"manifest.json: names no room.* needs.room"):
        score._law(tmp_path / "shards")


def test_clips_of_a_world_without_pictures_are_not_decoded():
    with pytest.raises(ValueError, match="names no autoencoder.*closed-form world"):
        autoencoder_of({"kind": "clips"})
