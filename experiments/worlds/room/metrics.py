"""The `room.*` metrics: does a clip show what its cameras say, and is its lamp decided?

All are measured against the exact renderer. The first frame has no motion before it; metrics of
motion begin with the second.
"""

from itertools import pairwise

import numpy as np

from datamodules.cameras import placed
from experiments.metrics.registry import Measurement, NotApplicable
from experiments.metrics.statistics import bootstrap_interval
from experiments.worlds.room.context import View, apart, of_walks
from experiments.worlds.room.render import seen
from experiments.worlds.room.search import differences
from experiments.worlds.room.walks import KEYS

NAMES = ["".join(keys) for keys in KEYS]
SIDEWAYS = [NAMES.index(key) for key in "adjl"]
_EXCHANGED = {"a": "d", "d": "a", "j": "l", "l": "j"}
MIRRORED = np.array([NAMES.index(_EXCHANGED.get(name, name)) for name in NAMES])
SAME_PLACE = 1e-6
FURTHEST = 0.45
"""Of a picture's width, by which a turn may move it."""
BLENDED = (0.3, 0.7)
"""Between these a frame's lamp is neither on nor off."""


@of_walks("room.place", "place error", unit="units", higher_is_better=False)
def place(view: View) -> Measurement:
    """Distance of the cameras found to those commanded; half a wall's height is the unit."""
    return _of_frames(apart(view.found, view.commanded)[..., 0], view.seed)


@of_walks("room.yaw", "yaw error", unit="degrees", higher_is_better=False)
def yaw(view: View) -> Measurement:
    """Angle between the cameras found and those commanded."""
    return _of_frames(apart(view.found, view.commanded)[..., 1], view.seed)


@of_walks("room.keys", "key accuracy", unit="share of frames")
def keys(view: View) -> Measurement:
    """Whether the motion measured is explained best by the key whose motion was commanded. Extra:
    the same of the frames of each key.

    Raises:
        ValueError: with left and right exchanged it is explained better: the clips are mirrored.
    """
    right = (view.seen_keys == view.asked_keys).astype(float)
    mirrored = (MIRRORED[view.seen_keys] == view.asked_keys).astype(float)
    found = _by_clip(right, view.seed)
    other = bootstrap_interval(mirrored.mean(1), view.seed)
    if other[0] > found.interval[1]:
        raise ValueError(
            f"room.keys: {found.value:.0%} of the motions are those commanded, and"
            f" {mirrored.mean():.0%} with A and D, J and L exchanged: the keys of these clips are"
            " mirrored; compare their poses with datamodules/cameras.py"
        )
    found.extra.update(mirrored=float(mirrored.mean()), **_by_key(right, view.asked_keys))
    return found


@of_walks("room.picture", "obedience: the picture moves to the right side", unit="share of frames")
def picture(view: View) -> Measurement:
    """Of the frames that turn or step sideways: in how many the picture has moved, since the frame
    before, to the side to which such a motion moves it. One that stands still is wrong. Extra: the
    same of the frames of each key.
    """
    shifts = [
        [shift(one, other) for one, other in pairwise(video.astype(np.float32))]
        for video in view.videos
    ]
    return _of_sideways(view, -np.array(shifts))


@of_walks("room.sides", "obedience: the cameras found move so", unit="share of frames")
def sides(view: View) -> Measurement:
    """The same of the cameras found; the search errs in both frames of a motion."""
    return _of_sideways(view, _side(view.found))


@of_walks("room.psnr", "PSNR to the truth", unit="dB")
def psnr(view: View) -> Measurement:
    """Of each frame to the rendering at the commanded camera, under the lamp that fits better."""
    return _of_frames(-10 * np.log10(np.maximum(view.errors.min(-1), 1e-10)), view.seed)


@of_walks("room.revisit", "revisit: change of the picture", unit="levels", higher_is_better=False)
def revisit(view: View) -> Measurement:
    """Mean absolute difference of two frames from one commanded camera, others in between, under
    the same lamp; of 255 levels.
    """
    changes = np.full(len(view.videos), np.nan)
    for number, video in enumerate(view.videos.astype(float)):
        away = apart(view.commanded[number][:, None], view.commanded[number][None]).max(-1)
        lit = view.light[number] < 0.5
        pairs = [
            np.abs(video[one] - video[other]).mean()
            for one, other in np.argwhere(np.triu(away < SAME_PLACE, 2))
            if lit[one] == lit[other] and away[one : other + 1, one].max() > SAME_PLACE
        ]
        if pairs:
            changes[number] = np.mean(pairs)
    if np.isnan(changes).all():
        raise NotApplicable("no walk comes back to a camera that it had before")
    return _where_defined(changes, view.seed)


@of_walks("room.loop", "loops: back at the start", unit="share of walks")
def loop(view: View) -> Measurement:
    """Of walks that end with the camera they began with: whether the last frame is nearer to the
    room as it is seen from there than to any other direction, a turn apart each; by chance, one in
    as many as a full turn has. Extra: the direction [degrees] that is nearest in the mean of walks.
    """
    right, away_by = np.full(len(view.videos), np.nan), []
    turns = np.arange(0, 360, view.room.turn)
    for number, (places, walk) in enumerate(zip(view.commanded, view.walks, strict=True)):
        away = apart(places, places[0]).max(-1)
        if away[-1] > SAME_PLACE or away.max() <= SAME_PLACE:
            continue
        x, z, yaw = places[0]
        poses = np.stack([placed(x, z, yaw + turn) for turn in turns])
        last = view.videos[number, -1].astype(np.float32) / 255
        truth = seen(poses, walk.faces, last.shape[0])
        away_by.append(differences(last, truth).min(1))
        right[number] = away_by[-1].argmin() == 0
    if np.isnan(right).all():
        raise NotApplicable("no walk leaves its first camera and ends with it")
    found = _where_defined(right, view.seed)
    found.extra["nearest_in_the_mean"] = float(turns[np.mean(away_by, 0).argmin()])
    return found


@of_walks("room.blended", "half-lit frames", unit="share of frames", higher_is_better=False)
def blended(view: View) -> Measurement:
    """Frames whose lamp is neither on nor off: the blend of two futures that a mean predicts."""
    low, high = BLENDED
    return _of_frames(((view.light > low) & (view.light < high)).astype(float), view.seed)


@of_walks("room.switches", "lamp switches", unit="share of frames", higher_is_better=None)
def switches(view: View) -> Measurement:
    """How often the lamp switches from a frame to the next; the law says `lamp`."""
    dark = view.light > 0.5
    found = _by_clip((dark[:, 1:] != dark[:, :-1]).astype(float), view.seed)
    found.extra["law"] = view.room.lamp
    return found


def shift(before: np.ndarray, after: np.ndarray) -> int:
    """By how many columns a picture has moved to the right: where both agree best, under the gain
    of each colour that suits them, since the lamp may have switched. ``[S, S, 3]`` each.
    """
    size = before.shape[1]
    furthest = round(FURTHEST * size)

    def error(moved: int) -> float:
        one = before[:, max(0, -moved) : size - max(0, moved)]
        other = after[:, max(0, moved) : size - max(0, -moved)]
        gain = (one * other).sum((0, 1)) / np.maximum(np.square(one).sum((0, 1)), 1e-6)
        return float(np.square(gain * one - other).mean())

    return min(range(-furthest, furthest + 1), key=error)


def _of_sideways(view: View, moved: np.ndarray) -> Measurement:
    """How often motions ``[N, T - 1]`` to the right or left have the commanded sign."""
    asked = np.isin(view.asked_keys, SIDEWAYS)
    if not asked.any():
        raise NotApplicable("no walk turns or steps sideways")
    right = asked & (moved * _side(view.commanded) > 0)
    per_clip = np.where(asked.any(1), right.sum(1) / np.maximum(asked.sum(1), 1), np.nan)
    found = _where_defined(per_clip, view.seed)
    found.extra.update(_by_key(right[asked], view.asked_keys[asked]))
    return found


def _by_key(right: np.ndarray, asked: np.ndarray) -> dict[str, float]:
    """Share of frames, of any shape, that are right, by the key that was asked for."""
    return {
        f"key_{name or 'none'}": float(right[asked == number].mean())
        for number, name in enumerate(NAMES)
        if (asked == number).any()
    }


def _side(places: np.ndarray) -> np.ndarray:
    """To which side a motion goes, as a turn to the right and a step along the camera's x axis."""
    yaw = np.radians(places[:, 1:, 2])
    moved = places[:, 1:, :2] - places[:, :-1, :2]
    right = np.cos(yaw) * moved[..., 0] - np.sin(yaw) * moved[..., 1]
    turned = np.radians((places[:, 1:, 2] - places[:, :-1, 2] + 180) % 360 - 180)
    return right + turned


def _of_frames(values: np.ndarray, seed: int) -> Measurement:
    """Mean over all frames after the first, with a curve over frames; ``[N, T]``."""
    found = _by_clip(values[:, 1:], seed)
    found.curves["by_frame"] = values.mean(0).tolist()
    return found


def _where_defined(per_clip: np.ndarray, seed: int) -> Measurement:
    """Mean over the clips that have a value; NaN marks the others."""
    count = int(np.isfinite(per_clip).sum())
    interval = bootstrap_interval(per_clip, seed)
    return Measurement(float(np.nanmean(per_clip)), count, interval, per_clip)


def _by_clip(values: np.ndarray, seed: int) -> Measurement:
    per_clip = values.mean(1)
    interval = bootstrap_interval(per_clip, seed)
    return Measurement(float(per_clip.mean()), len(per_clip), interval, per_clip)
