"""The tiny world follows its dynamics, captions match the states, the encoder fits its clips."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn, idctn

from experiments.worlds.digits.ground import Ground
from experiments.worlds.digits.moving_digits import (
    DIGITS,
    HEADINGS,
    Attributes,
    World,
    all_captions,
    attributes_of,
    caption,
    digit_bank,
    generator,
)

WORLD = World(
    size=32, frames=8, fps=8, sprite=16, slow=1.25, fast=3.0, turn=0.25, still=0.1, spread=8.0
)
TILED = replace(WORLD, scroll=8, dark=0.1, bright=0.3)
ALL = [attributes_of(text) for text in all_captions()]


def clips(count, split="train", seed=0):
    return [WORLD.clip(seed, split, i) for i in range(count)]


def test_captions_and_attributes_are_inverse():
    assert len(set(all_captions())) == 90
    assert all(caption(attributes_of(text)) == text for text in all_captions())
    assert caption(Attributes(7, "left", "fast")) == "a seven moving left, fast"
    assert caption(Attributes(7, "up", "slow")) == "a seven moving up, slowly"
    assert caption(Attributes(7, None, "still")) == "a seven standing still"
    assert Attributes(**Attributes(3, "up", "slow").as_dict()) == Attributes(3, "up", "slow")


@pytest.mark.parametrize("text", ["", "a seven", "a cat standing still", "a seven moving in, fast"])
def test_other_sentences_are_refused(text):
    with pytest.raises(ValueError, match="caption"):
        attributes_of(text)


@pytest.mark.parametrize("bad", [(7, "left", "still"), (7, None, "slow"), (10, None, "still")])
def test_attributes_without_a_caption_are_refused(bad):
    with pytest.raises(ValueError, match="no caption"):
        Attributes(*bad)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    attributes=st.sampled_from(ALL),
    turn=st.sampled_from([0.0, 0.25, 1.0]),
    fast=st.floats(1.5, 8.0),
)
def test_every_path_follows_the_law(seed, attributes, turn, fast):
    world = World(32, 12, 8, 16, slow=1.25, fast=fast, turn=turn, still=0.1, spread=8.0)
    states = world.trajectory(np.random.default_rng(seed), attributes).astype(np.float64)
    places, velocities = states[:, :2], states[:, 2:]
    assert states.shape == (12, 4)
    assert (places >= 8 - 1e-4).all() and (places <= 24 + 1e-4).all()
    np.testing.assert_allclose(np.abs(velocities).sum(1), world.speed(attributes), atol=1e-5)
    heading = HEADINGS.get(attributes.direction, (0, 0))
    first = np.multiply(heading, world.speed(attributes))
    np.testing.assert_allclose(velocities[0], first, atol=1e-5)
    np.testing.assert_allclose(places[1] - places[0], first, atol=1e-4)  # never a bounce
    moved = places[:-1] + velocities[:-1]
    mirrored = np.where(moved < 8, 16 - moved, np.where(moved > 24, 48 - moved, moved))
    np.testing.assert_allclose(places[1:], mirrored, atol=1e-4)
    if turn == 0 and attributes.direction:
        # Without turns only a wall changes the velocity, and it changes the sign alone.
        bounced = np.abs(moved - mirrored) > 1e-3
        np.testing.assert_allclose(
            velocities[1:], np.where(bounced, -velocities[:-1], velocities[:-1]), atol=1e-5
        )
    if turn == 1:
        across = (velocities[1:] * velocities[:-1]).sum(1)
        np.testing.assert_allclose(across, 0, atol=1e-5)


def test_turns_and_attributes_have_their_frequencies():
    made = clips(1500)
    moving = [c for c in made if c.attributes.direction]
    assert abs(1 - len(moving) / len(made) - 0.1) < 0.025
    crossed = [np.abs((c.states[1:, 2:] * c.states[:-1, 2:]).sum(1)) < 1e-6 for c in moving]
    assert abs(np.mean(crossed) - 0.25) < 0.015
    for values, chance in (
        ([c.attributes.digit for c in made], 1 / 10),
        ([c.attributes.direction for c in moving], 1 / 4),
        ([c.attributes.speed for c in moving], 1 / 2),
    ):
        shares = np.unique(values, return_counts=True)[1] / len(values)
        np.testing.assert_allclose(shares, chance, atol=0.04)


def test_the_future_is_uncertain_given_caption_and_first_frame():
    rng = np.random.default_rng(0)
    ends = np.array([WORLD.trajectory(rng, ALL[0])[[0, -1], :2] for _ in range(200)])
    assert (ends[:, 1] - ends[:, 0]).std(axis=0).min() > 2


def test_a_clip_depends_on_seed_split_and_number_alone():
    one = WORLD.clip(3, "train", 5)
    many = [WORLD.clip(3, "train", i) for i in range(8)][5]
    assert one.attributes == many.attributes and one.image == many.image
    np.testing.assert_array_equal(one.video, many.video)
    np.testing.assert_array_equal(one.states, many.states)
    others = [WORLD.clip(4, "train", 5), WORLD.clip(3, "heldout", 5), WORLD.clip(3, "train", 6)]
    assert all(not np.array_equal(one.states, other.states) for other in others)


def test_train_and_heldout_images_are_disjoint():
    (train, train_labels), (heldout, heldout_labels) = digit_bank("train"), digit_bank("heldout")
    assert 1190 <= len(train) <= 1210 and 580 <= len(heldout) <= 600
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in heldout}
    for labels in (train_labels, heldout_labels):
        shares = np.bincount(labels, minlength=len(DIGITS)) / len(labels)
        np.testing.assert_allclose(shares, 0.1, atol=0.01)
    with pytest.raises(ValueError, match="no split 'test'; there are train, heldout"):
        digit_bank("test")


def test_digits_are_drawn_where_the_state_says():
    sprites, _ = digit_bank("train")
    grid = np.arange(32) + 0.5
    places = np.array([[12.0, 12, 0, 0], [15.3, 12.7, 0, 0], [20, 19.5, 0, 0]])
    frames = WORLD.render(sprites[0], places)[..., 0].astype(np.float64)
    assert frames.shape == (3, 32, 32)
    mass = frames.sum(axis=(1, 2))
    np.testing.assert_allclose(mass, mass[0], rtol=0.01)
    x = frames.sum(axis=1) @ grid / mass
    y = frames.sum(axis=2) @ grid / mass
    np.testing.assert_allclose(x - x[0], places[:, 0] - places[0, 0], atol=0.03)
    np.testing.assert_allclose(y - y[0], places[:, 1] - places[0, 1], atol=0.03)


def test_motion_is_smooth_below_a_pixel():
    """Steps of a tenth of a pixel change a frame by equal, small amounts."""
    sprites, _ = digit_bank("train")
    x = np.arange(12, 18, 0.1)
    states = np.stack([x, np.full_like(x, 14), 0 * x, 0 * x], axis=1)
    frames = WORLD.render(sprites[3], states).astype(np.float64)
    steps = np.sqrt((np.diff(frames, axis=0) ** 2).mean(axis=(1, 2, 3)))
    assert steps.max() < 1.15 * steps.min()
    assert steps.max() < 4


def test_brightness_fills_the_range_without_clipping():
    video = np.stack([c.video for c in clips(200)])
    peaks = video.max(axis=(1, 2, 3, 4))
    assert video.dtype == np.uint8 and video.shape[1:] == (8, 32, 32, 1)
    assert (peaks > 235).all()
    assert (video == 255).mean() < 2e-3


@pytest.mark.parametrize("world", [WORLD, TILED], ids=["black", "tiled"])
def test_sixteen_of_64_cosines_keep_the_picture(world):
    """The tiny autoencoder's loss: below 33 dB it would be what the metrics measure."""
    video = np.stack([world.clip(0, "train", i).video for i in range(200)])[..., 0].astype(float)
    patches = video.reshape(200, 8, 4, 8, 4, 8).swapaxes(3, 4)
    kept = dctn(patches, axes=(-2, -1), norm="ortho")
    kept[..., 4:, :] = kept[..., :, 4:] = 0
    error = idctn(kept, axes=(-2, -1), norm="ortho") - patches
    assert 10 * np.log10(255**2 / (error**2).mean()) > 35
    assert 10 * np.log10(255**2 / (error**2).mean(axis=(1, 2, 3, 4, 5)).max()) > 31


def test_the_ground_scrolls_by_whole_tiles_and_new_ones_are_fair_bits():
    grounds = [Ground.draw(np.random.default_rng(i), 32, 8, tile=8, scroll=8) for i in range(400)]
    seen = np.stack([ground.seen(32) for ground in grounds])  # [clips, frames, rows, columns]
    assert seen.shape == (400, 8, 4, 4)
    np.testing.assert_array_equal(seen[:, 1:, :, :-1], seen[:, :-1, :, 1:])
    new, before = seen[:, 1:, :, -1], seen[:, :-1, :, -1]
    assert abs(new.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(new.ravel(), before.ravel())[0, 1]) < 0.04
    assert abs(np.corrcoef(new[:, :, 0].ravel(), new[:, :, 1].ravel())[0, 1]) < 0.06


def test_tiles_have_their_gray_levels_and_the_digit_stands_in_front():
    for clip in (TILED.clip(0, "train", i) for i in range(20)):
        middles = clip.video[:, 4::8, 4::8, 0].astype(int)  # past the soft edges of a tile
        wanted = np.rint(255 * np.where(clip.ground.seen(32), 0.3, 0.1))
        at = np.arange(4, 32, 8) + 0.5
        aside = np.abs(at - clip.states[:, :1]) > 12  # of the digit: [T, 4]
        rows = np.broadcast_to(aside[:, None], wanted.shape)
        assert rows.any() and np.abs(middles - wanted)[rows].max() <= 1
        assert clip.video.max() > 230


def test_the_ground_changes_nothing_else_of_a_clip():
    plain, tiled = clips(40), [TILED.clip(0, "train", i) for i in range(40)]
    for one, other in zip(plain, tiled, strict=True):
        assert one.attributes == other.attributes and one.image == other.image
        np.testing.assert_array_equal(one.states, other.states)
        assert not np.array_equal(one.video, other.video)


@pytest.mark.parametrize(
    "numbers",
    [
        {"fast": 1.0},
        {"fast": 9.0},
        {"turn": 1.5},
        {"size": 16},
        {"frames": 1},
        {"scroll": 4},
        {"tile": 5},
        {"dark": 0.3, "bright": 0.2},
        {"bright": 1.0},
    ],
)
def test_a_world_without_meaning_is_refused(numbers):
    with pytest.raises(ValueError, match="world: "):
        replace(WORLD, **numbers)


def test_generators_of_neighbours_are_independent():
    draws = np.array([generator(0, "train", i).random(2) for i in range(500)])
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.15
