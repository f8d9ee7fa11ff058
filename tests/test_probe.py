import json

import numpy as np
import pytest
import torch
from tiny_probe import WORLD, clips, probe, samples, train

from experiments.worlds.digits.moving_digits import World
from experiments.worlds.digits.probe import handwriting, not_a_digit, worn
from experiments.worlds.digits.probe_network import SIDE, ProbeNetwork, centred

pytestmark = pytest.mark.numeric


def test_reads_unseen_handwriting_after_seconds_of_training():
    gate = probe().gate
    assert gate["accuracy"] > 0.93
    assert gate["position_error"] < 0.8
    assert gate["presence"] > 0.98
    assert gate["ground"] > 0.97


def test_a_gray_between_the_levels_is_read_as_neither():
    """Undistorted frames alone teach the ground, so a ground that a mean has blurred stands out."""
    data = clips("heldout", 64)
    mean = round(255 * (WORLD.dark + WORLD.bright) / 2)
    gray = np.where(data.videos < 255 * 0.3, mean, data.videos).astype(np.uint8)
    sure, unsure = (
        np.abs(2 * probe().network.read(videos).ground - 1).mean() for videos in (data.videos, gray)
    )
    assert sure > 0.8 and unsure < 0.6 * sure


def test_noise_blank_and_overlaid_digits_are_no_digit():
    data = clips("heldout", 64)
    real, places = data.videos, data.states[..., :2]
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, real.shape, dtype=np.uint8)
    for wrong in (noise, np.zeros_like(real)):
        assert (probe().network.read(wrong).presence > 0.5).mean() < 0.4
    both = probe().network.read(np.maximum(real, real[::-1])).presence > 0.5
    apart = np.linalg.norm(places - places[::-1], axis=-1) > 10  # px: two digits, not one blot
    assert apart.sum() > 50 and both[apart].mean() < 0.4
    assert (probe().network.read(real).presence > 0.5).mean() > 0.97


def test_mild_grain_is_still_a_digit():
    real = clips("heldout", 64).videos
    grainy = np.clip(real + np.random.default_rng(0).normal(0, 10, real.shape), 0, 255)
    assert (probe().network.read(grainy.astype(np.uint8)).presence > 0.5).mean() > 0.9


def test_centring_moves_the_sprite_to_the_middle():
    frame = torch.zeros(1, 1, SIDE, SIDE)
    frame[0, 0, 10, 20] = 1.0  # pixel whose centre is (x, y) = (20.5, 10.5)
    moved = centred(frame, torch.tensor([[20.0, 10.0]]))
    assert moved[0, 0, 16, 16] == pytest.approx(1.0, abs=1e-5)
    assert moved.sum() == pytest.approx(1.0, abs=1e-4)


def test_centring_hides_what_is_outside_the_sprite():
    frame = torch.ones(1, 1, SIDE, SIDE)
    assert centred(frame, torch.tensor([[16.0, 16.0]])).sum() == pytest.approx(256, abs=1e-3)


def test_augmentation_is_a_function_of_its_generator_and_stays_in_range():
    frames = torch.from_numpy(clips("train", 8).videos).reshape(-1, 1, SIDE, SIDE).float() / 255
    centre = torch.from_numpy(clips("train", 8).states[..., :2]).reshape(-1, 2)
    for change in (not_a_digit, worn, lambda f, g: handwriting(f, centre, g)):
        first, second = (change(frames, torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(first, second)
        assert first.shape == frames.shape and first.min() >= 0 and first.max() <= 1 + 1e-6
        assert not torch.equal(first, frames)


def test_handwriting_keeps_the_place():
    data = clips("train", 32)
    ink = World(**{**vars(WORLD), "dark": 0.0, "bright": 0.0})  # alone tells where the digit is
    videos = np.stack([ink.clip(0, "train", number).video for number in range(32)])
    frames = torch.from_numpy(videos).reshape(-1, 1, SIDE, SIDE).float()
    centre = torch.from_numpy(data.states[..., :2]).reshape(-1, 2)
    bent = handwriting(frames, centre, torch.Generator().manual_seed(0))
    across = torch.arange(SIDE) + 0.5

    def mass(f):
        return (f[:, 0].sum(1) * across).sum(1) / f.sum((1, 2, 3))

    assert (mass(bent) - mass(frames)).mean().abs() < 0.1


def test_same_seed_same_weights():
    first, second = train(3), train(3)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_hand_off_round_trip(tmp_path):
    probe().hand_off(tmp_path)
    loaded = ProbeNetwork.load(tmp_path / "probe")
    videos = clips("heldout", 16).videos
    here, there = probe().network.read(videos), loaded.read(videos)
    for name in ("position", "presence", "classes", "ground", "features", "identity"):
        assert np.array_equal(getattr(here, name), getattr(there, name))
    meta = json.loads((tmp_path / "probe" / "meta.json").read_text())
    assert meta["gate"]["frames"] == 128 * 8 and len(meta["sha256"]) == 64
    assert sorted(p.name for p in (tmp_path / "probe").iterdir()) == [
        "meta.json",
        "weights.safetensors",
    ]


def test_a_probe_that_misses_its_gate_is_refused(tmp_path):
    blind = train(2)
    with pytest.raises(ValueError, match="not measured"):
        blind.hand_off(tmp_path)
    blind.measure(samples(clips("heldout", 16)))
    with pytest.raises(ValueError, match="misses its gate"):
        blind.hand_off(tmp_path)
    assert not (tmp_path / "probe").exists()


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="fit `probe` first"):
        ProbeNetwork.load(tmp_path)
    with pytest.raises(ValueError, match="uint8 videos"):
        probe().network.read(np.zeros((1, 8, 32, 32, 1), np.float32))
    with pytest.raises(ValueError, match="empty held-out set"):
        train(1).measure([])
