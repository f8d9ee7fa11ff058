"""One convention of cameras: keys, poses and labels agree, and the picture is the judge."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.cameras import (
    MOTIONS,
    Stride,
    elevation,
    from_stored,
    held,
    inverse,
    keys_of_label,
    label_of,
    labels_of,
    moved,
    parse_keys,
    placed,
    relative,
    rigid,
    rotation,
    to_stored,
    trajectory,
)
from experiments.worlds.room.paint import paintings
from experiments.worlds.room.render import seen
from experiments.worlds.room.walks import REACH, Room, place_of, step

STRIDE = Stride()
ONE = st.sampled_from(sorted(MOTIONS))
HELD = st.frozensets(ONE, max_size=4)
MIRRORED = {"w": 9, "s": 18, "a": 27, "d": 36, "l": 1, "j": 2, "i": 3, "k": 4}
"""The keys of code that renamed HY-WorldPlay's bits without its geometry: A and D exchanged."""
OPPOSITE = dict(zip("wsadjlik", "swdaljki", strict=True))


def canonical(keys):
    """Without keys that cancel each other."""
    return frozenset(key for key in keys if OPPOSITE[key] not in keys)


def test_axes_are_as_the_convention_says():
    forward = [0, 0, 1]
    assert (rotation(30) @ forward)[0] > 0.4, "positive yaw turns right, towards +x"
    assert (rotation(0, 30) @ forward)[1] < -0.4, "positive pitch looks up, towards -y"
    assert inverse(trajectory([{"w"}], STRIDE)[1])[2, 3] == pytest.approx(STRIDE.step)
    assert inverse(trajectory([{"d"}], STRIDE)[1])[0, 3] == pytest.approx(STRIDE.step)


def test_a_camera_turns_first_and_then_walks_along_its_new_axes():
    camera = inverse(moved(np.eye(4), "wl", Stride(1.0, 90.0)))
    assert camera[:3, 3] == pytest.approx([1, 0, 0])


@given(st.lists(HELD, min_size=1, max_size=19))
def test_the_labels_of_poses_are_the_keys_that_made_them(keys):
    labels = labels_of(trajectory(keys, STRIDE), STRIDE)
    assert [keys_of_label(label) for label in labels] == [canonical(frame) for frame in keys]


@pytest.mark.parametrize("key", MIRRORED)
def test_labels_are_those_of_worldplay_and_the_mirrored_table_is_wrong(key):
    label = label_of(np.eye(4), moved(np.eye(4), key, STRIDE), STRIDE)
    swapped = MIRRORED[{"a": "d", "d": "a"}.get(key, key)]
    assert label == swapped
    assert (label == MIRRORED[key]) == (key not in "ad")


def test_a_label_has_one_threshold_in_steps_and_turns():
    before = np.eye(4)
    for part, seen_as in ((0.1, ""), (0.2, "w")):
        after = moved(before, "w", Stride(STRIDE.step * part, STRIDE.turn))
        assert keys_of_label(label_of(before, after, STRIDE)) == frozenset(seen_as)


@given(st.lists(ONE, max_size=15))
def test_opposite_keys_in_reverse_order_lead_back(keys):
    # A key turns first and walks then; one that does either alone is undone by its opposite.
    there_and_back = keys + [OPPOSITE[key] for key in reversed(keys)]
    assert trajectory(there_and_back, STRIDE)[-1] == pytest.approx(np.eye(4), abs=1e-12)


def test_ten_thousand_steps_stay_rigid():
    generator, pose = np.random.default_rng(0), np.eye(4)
    for key in generator.choice(sorted(MOTIONS), 10_000):
        pose = moved(pose, key, STRIDE)
    assert pose[:3, :3] @ pose[:3, :3].T == pytest.approx(np.eye(3), abs=1e-9)
    assert pose @ inverse(pose) == pytest.approx(np.eye(4), abs=1e-9)


def test_nobody_looks_over_the_top():
    poses = trajectory(["i"] * 30, STRIDE)
    assert elevation(poses[-1]) == pytest.approx(60)
    assert elevation(trajectory([*["i"] * 30, "k"], STRIDE)[-1]) == pytest.approx(57)


def test_the_first_frame_is_the_origin_of_what_is_stored():
    moved_world = rigid(rotation(40, 10), np.array([3.0, 1.0, -2.0]))
    poses = trajectory(parse_keys("wl*5, d*2"), STRIDE)
    stored = to_stored(poses @ moved_world)
    assert stored.dtype == np.float32 and stored.shape == (8, 3, 4)
    assert from_stored(stored) == pytest.approx(poses, abs=1e-6)
    assert relative(poses) == pytest.approx(poses)


def test_keys_are_written_as_words():
    frames = parse_keys("w*2, WL, none, left*1,up")
    assert frames == [*[frozenset("w")] * 2, frozenset("wl"), frozenset(), *map(frozenset, "ji")]
    assert held("still") == frozenset()


@pytest.mark.parametrize("text", ["q", "w*0", "w*x", "w*-1", "wq*3", "w*1.5"])
def test_wrong_keys_are_refused_with_what_there_is(text):
    with pytest.raises(ValueError, match=r"there are w, s, a, d|write it as w\*10"):
        parse_keys(text)


# -- the picture is the judge --------------------------------------------------------------------


def picture(pose, size=64):
    return seen(pose[None], paintings("primary"), size)[0].mean(-1)


def shift(before, after, axis):
    """By how many pixels the picture moved along an axis, by the best correlation."""

    def match(by):
        moved_on = np.roll(before, by, axis)
        inner = (slice(12, -12),) * 2
        return np.corrcoef(moved_on[inner].ravel(), after[inner].ravel())[0, 1]

    return max(range(-10, 11), key=match)


def zoom(image, by):
    at = np.arange(len(image)) - (len(image) - 1) / 2
    taken = np.rint(at / by + (len(image) - 1) / 2).astype(int).clip(0, len(image) - 1)
    return image[np.ix_(taken, taken)]


VIEWS = [placed(x, z, yaw) for x, z, yaw in [(0, 0, 5), (0.3, -0.4, 85), (-0.3, 0.2, 170)]]


@pytest.mark.parametrize("pose", VIEWS)
@pytest.mark.parametrize(
    ("key", "axis", "sign"),
    [("a", 1, 1), ("d", 1, -1), ("j", 1, 1), ("l", 1, -1), ("i", 0, 1), ("k", 0, -1)],
)
def test_the_rendered_room_moves_as_the_table_says(pose, key, axis, sign):
    after = moved(pose, key, Stride(0.3, 8.0))
    assert shift(picture(pose), picture(after), axis) * sign > 0


@pytest.mark.parametrize("pose", VIEWS)
@pytest.mark.parametrize(("key", "bigger"), [("w", True), ("s", False)])
def test_the_rendered_room_grows_when_one_walks_towards_it(pose, key, bigger):
    before, after = picture(pose), picture(moved(pose, key, Stride(0.4, 1.0)))
    inner = (slice(20, -20),) * 2
    errors = {by: np.square(zoom(before, by) - after)[inner].mean() for by in (1.25, 1 / 1.25)}
    assert (errors[1.25] < errors[1 / 1.25]) == bigger


def test_the_stored_camera_is_the_one_that_a_wall_has_stopped():
    pose = placed(0, REACH - 0.1, 0)
    assert place_of(step(pose, frozenset("w"), Room().stride)) == pytest.approx((0, REACH, 0))


@given(st.integers(0, 2**31))
@settings(deadline=None, max_examples=10)
def test_a_walk_stays_inside_and_its_labels_are_those_of_its_poses(seed):
    room = Room()
    walk = replace(room, frames=24).walk("heldout", seed, 3)
    places = np.array([place_of(pose) for pose in walk.poses])
    assert np.abs(places[:, :2]).max() <= REACH + 1e-9 and len(walk.keys) == 23
    for before, after, key in zip(walk.poses, walk.poses[1:], walk.keys, strict=False):
        free = np.allclose(after, moved(before, key, room.stride))
        assert not free or keys_of_label(label_of(before, after, room.stride)) == key


def test_walks_of_the_splits_differ_and_a_longer_one_begins_alike():
    room = Room()
    train, other = room.walk("train", 0, 7), room.walk("heldout", 0, 7)
    assert not np.allclose(train.poses, other.poses)
    longer = replace(room, frames=20).walk("train", 0, 7)
    assert np.array_equal(longer.poses[:8], train.poses)
    assert np.array_equal(longer.video[:8], train.video)


def test_the_lamp_switches_as_often_as_the_law_says():
    room = Room(lamp=0.2)
    dark = np.array([room.walk("train", 0, index).dark for index in range(400)])
    assert (dark[:, 1:] != dark[:, :-1]).mean() == pytest.approx(0.2, abs=0.03)


def test_rays_meet_the_box_where_a_plain_loop_says():
    pose = moved(placed(0.4, -0.7, 33), "i", Stride(0.1, 10.0))
    faces = np.random.default_rng(0).random((6, 64, 64, 3)).astype(np.float32)
    camera = inverse(pose)
    frame = seen(pose[None], faces, 8, rays=1)[0]
    for row, column in np.ndindex(8, 8):
        ray = camera[:3, :3] @ [(column + 0.5) / 4 - 1, (row + 0.5) / 4 - 1, 1]
        points = camera[:3, 3] + np.arange(0, 8, 1e-4)[:, None] * ray
        ahead = points[np.argmax((np.abs(points) > [2, 1, 2]).any(1))]  # where it leaves the box
        axis = int(np.argmax(np.abs(ahead) - [2, 1, 2]))
        x, y, z = ahead / [2, 1, 2]
        down, along = (z, x) if axis == 1 else (y, z if axis == 0 else x)
        at = [np.clip((each + 1) * 32 - 0.5, 0, 62.999) for each in (down, along)]
        top, left = (int(each) for each in at)
        lower, right = at[0] - top, at[1] - left
        patch = faces[2 * axis + (ahead[axis] > 0), top : top + 2, left : left + 2]
        weights = np.outer([1 - lower, lower], [1 - right, right])[..., None]
        assert frame[row, column] == pytest.approx((patch * weights).sum((0, 1)), abs=0.02)
