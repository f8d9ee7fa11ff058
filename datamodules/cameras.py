"""The one convention of cameras, keys and action labels; no other file has a rotation or a key.

Axes are OpenCV's: x right, y down, z forward. Matrices act on columns. ``W`` ``[4, 4]`` float64 is
world-to-camera, which is what is stored and passed on; ``C = W^-1`` is the camera in the world,
which is what moves. The first frame of a clip is the origin: ``W_0 = 1``. Stored are

    poses       [F, 3, 4] float32   the first three rows of W, relative to the clip's first frame
    intrinsics  [F, 4] float32      fx, fy, cx, cy in fractions of the image; 0.5 is its middle

A key is a motion in the camera's own axes: first it turns, ``C <- C R_y(yaw) R_x(pitch)``, then it
moves along its *new* axes. ``R_y(a)`` takes z to +x, so positive yaw turns right; ``R_x(a)`` takes
z to -y, so positive pitch looks up. Yaw is about the camera's own y: after a pitch it tilts the
horizon. So do HY-WorldPlay's trajectories (``generate_custom_trajectory.py``).

Labels are derived from poses, never from keys, so that training and sampling cannot disagree.
Their order is HY-WorldPlay's, whose bit 2 is *right* (D): some code derived from it has mirrored
A and D.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from lightning_modules.ranges import Positive

Matrix = np.ndarray
Keys = frozenset[str]
"""The keys that are held in one frame; empty: none."""


class Motion(NamedTuple):
    """What a key does, in steps along x and z and in turns to the right and up."""

    x: int = 0
    z: int = 0
    yaw: int = 0
    pitch: int = 0


MOTIONS = {
    "w": Motion(z=1),
    "s": Motion(z=-1),
    "a": Motion(x=-1),
    "d": Motion(x=1),
    "j": Motion(yaw=-1),
    "l": Motion(yaw=1),
    "i": Motion(pitch=1),
    "k": Motion(pitch=-1),
}
ARROWS = {"left": "j", "right": "l", "up": "i", "down": "k"}
MEANINGS = {
    "w": "forward",
    "s": "back",
    "a": "left",
    "d": "right",
    "j": "turn left",
    "l": "turn right",
    "i": "look up",
    "k": "look down",
}
STILL = ("none", "still")
TRANSLATIONS = ("", "w", "s", "d", "a", "wd", "wa", "sd", "sa")
ROTATIONS = ("", "l", "j", "i", "k", "li", "lk", "ji", "jk")
"""Keys of the two digits of a label, in HY-WorldPlay's order."""
THRESHOLD = 0.125
"""Part of a step or a turn from which a motion counts: HY-WorldPlay's 0.01 of 0.08."""
CONE = 60.0
"""Degrees around an axis in which a translation counts as one along it, as in HY-WorldPlay."""
STEEPEST = 60.0
"""Degrees that a camera may look up or down; a turn beyond is not made."""


@dataclass(frozen=True)
class Stride:
    """How far a key moves a camera in one latent frame.

    Args:
        step: of a translation, in units of the world; of HY-WorldPlay and minWM.
        turn: of a rotation, in degrees.
    """

    step: Positive = 0.08
    turn: Positive = 3.0


def rotation(yaw: float, pitch: float = 0.0) -> Matrix:
    """``R_y(yaw) R_x(pitch)`` ``[3, 3]``; degrees, to the right and up."""
    a, b = np.radians([yaw, pitch])
    about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_y @ about_x


def rigid(turned: Matrix, moved: Matrix) -> Matrix:
    """The matrix ``[..., 4, 4]`` of a rotation ``[..., 3, 3]`` and a translation ``[..., 3]``."""
    out = np.zeros((*turned.shape[:-2], 4, 4))
    out[..., :3, :3], out[..., :3, 3], out[..., 3, 3] = turned, moved, 1
    return out


def inverse(pose: Matrix) -> Matrix:
    """Of rigid matrices ``[..., 4, 4]``, in closed form."""
    back = np.swapaxes(pose[..., :3, :3], -1, -2)
    return rigid(back, -(back @ pose[..., :3, 3:])[..., 0])


def placed(x: float, z: float, yaw: float) -> Matrix:
    """World-to-camera of a walker at eye level; degrees to the right of +z."""
    return inverse(rigid(rotation(yaw), np.array([x, 0.0, z])))


def relative(poses: Matrix) -> Matrix:
    """``W_i W_0^-1`` ``[F, 4, 4]``: the same cameras with the first one as the origin."""
    return poses @ inverse(poses[0])


def to_stored(poses: Matrix) -> np.ndarray:
    """Matrices ``[F, 4, 4]`` as they are stored, ``[F, 3, 4]`` float32."""
    return relative(poses)[:, :3].astype(np.float32)


def from_stored(poses: np.ndarray) -> Matrix:
    """Stored poses ``[..., 3, 4]`` as matrices ``[..., 4, 4]`` float64."""
    return rigid(poses[..., :3].astype(np.float64), poses[..., 3].astype(np.float64))


def parse_keys(text: str) -> list[Keys]:
    """The keys of each frame, from ``"w*10, wl*3, none*2, left"``; ``wl`` are two held at once.

    Raises:
        ValueError: a part that is no key, or a count that is no positive number.
    """
    frames: list[Keys] = []
    for part in filter(None, map(str.strip, text.lower().split(","))):
        name, _, count = (each.strip() for each in part.partition("*"))
        if count and not (count.isascii() and count.isdigit() and int(count) > 0):
            raise ValueError(f"{part!r}: {count!r} is no number of frames; write it as w*10")
        frames += [held(name)] * int(count or 1)
    return frames


def held(name: str) -> Keys:
    """The keys of one frame by their letters, by the name of an arrow, or by ``none``.

    Raises:
        ValueError: there is no such key.
    """
    if name in STILL:
        return frozenset()
    keys = frozenset(ARROWS.get(name, name))
    if unknown := sorted(keys - MOTIONS.keys()):
        raise ValueError(
            f"{name!r}: there is no key {unknown[0]!r}; there are {', '.join(MOTIONS)},"
            f" {', '.join(ARROWS)} and none"
        )
    return keys


@cache
def motion(keys: Keys, stride: Stride) -> Matrix:
    """What keys held together do in one frame, ``[4, 4]``: ``C <- C M``; do not write to it.

    Opposite keys cancel; two translations together are still one step.
    """
    x, z, yaw, pitch = np.sum([Motion(), *(MOTIONS[key] for key in keys)], axis=0)
    turned = rotation(yaw * stride.turn, pitch * stride.turn)
    along = np.array([x, 0.0, z]) * stride.step / max(np.hypot(x, z), 1)
    return rigid(turned, turned @ along)


def moved(pose: Matrix, keys: Iterable[str], stride: Stride) -> Matrix:
    """The world-to-camera matrix after a frame in which `keys` were held.

    Pitch that would look more than `STEEPEST` up or down, seen from the first frame, is left out.
    """
    after = inverse(motion(frozenset(keys), stride)) @ pose
    pitches = any(MOTIONS[key].pitch for key in keys)
    steeper = abs(elevation(after)) > max(abs(elevation(pose)), STEEPEST + 1e-6)
    if pitches and steeper:
        return moved(pose, [key for key in keys if not MOTIONS[key].pitch], stride)
    return after


def trajectory(keys: Iterable[Iterable[str]], stride: Stride) -> Matrix:
    """World-to-camera matrices ``[1 + frames, 4, 4]``, from the origin."""
    poses = [np.eye(4)]
    for frame in keys:
        poses.append(moved(poses[-1], frame, stride))
    return np.stack(poses)


def elevation(pose: Matrix) -> float:
    """Degrees that a camera looks up."""
    return float(np.degrees(np.arcsin(np.clip(-pose[2, 1], -1, 1))))


def change(before: Matrix, after: Matrix) -> tuple[Matrix, float, float]:
    """From one camera to the next: translation ``[3]`` along the new axes, yaw and pitch [deg]."""
    step = before @ inverse(after)
    x, y, z = step[:3, 2]
    yaw, pitch = np.degrees([np.arctan2(x, z), np.arcsin(np.clip(-y, -1, 1))])
    return step[:3, :3].T @ step[:3, 3], float(yaw), float(pitch)


def label_of(before: Matrix, after: Matrix, stride: Stride) -> int:
    """The discrete action between two frames, ``9 translation + rotation``, 0 to 80."""
    along, yaw, pitch = change(before, after)
    size, cosine = np.linalg.norm(along), np.cos(np.radians(CONE))
    x, z = (along[[0, 2]] / size if size > THRESHOLD * stride.step else np.zeros(2)) / cosine
    right, up = np.array([yaw, pitch]) / (THRESHOLD * stride.turn)
    translation = _beyond(z, "ws") + _beyond(x, "da")
    turn = _beyond(right, "lj") + _beyond(up, "ik")
    return 9 * TRANSLATIONS.index(translation) + ROTATIONS.index(turn)


def labels_of(poses: Matrix, stride: Stride) -> list[int]:
    """Labels of the frames after the first."""
    return [label_of(before, after, stride) for before, after in pairwise(poses)]


def keys_of_label(label: int) -> Keys:
    """The keys that a label stands for."""
    return frozenset(TRANSLATIONS[label // 9] + ROTATIONS[label % 9])


def centred(intrinsics: Sequence[float]) -> bool:
    """Whether the principal point is in the middle of the image, to a hundredth of it."""
    return bool(np.abs(np.asarray(intrinsics)[..., 2:] - 0.5).max() < 0.01)


def _beyond(value: float, signs: str) -> str:
    """The key of a sign, if the value is beyond 1."""
    return signs[int(value < 0)] if abs(value) > 1 else ""
