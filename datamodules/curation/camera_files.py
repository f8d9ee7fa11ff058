"""Cameras of published data, read, checked and put into the convention of `datamodules/cameras.py`.

RealEstate10K has a text file for each clip: a first line with its address, then for each frame the
time in microseconds, fx, fy, cx and cy in fractions of the image, two zeros, and the first three
rows of the world-to-camera matrix. HY-WorldPlay and minWM have JSON objects from the number of a
frame to its matrix and intrinsics in pixels: to sample from, ``extrinsic`` (camera-to-world) and
``K``; to train on, ``w2c`` and ``intrinsic``. minWM also writes walks as ``right-8, a-11``, a key
and latent frames each, from which HY-WorldPlay generated the video.

Poses of files may have been estimated, with a scale of their own in every clip, so each is brought
to the same step; a walk has the step of its keys. Off-centre cameras are refused: PRoPE as it was
published ignores the principal point.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.cameras import (
    THRESHOLD,
    Keys,
    Stride,
    centred,
    held,
    inverse,
    relative,
    trajectory,
)
from datamodules.curation.refusal import Refused
from datamodules.curation.text_lists import read_lines
from datamodules.json_files import read_object

CURE = "give the clip the file that was published with it, or leave both out"
PIXEL_FRAMES = 4
"""Of a latent frame; its camera is that of the last of them (HY-WorldPlay's data sets)."""
RIGID = 1e-3
"""How far a rotation may be from orthonormal."""
LEAST = 0.5
"""Steps a frame that a clip must move on average."""
JUMP = 8.0
"""Steps between two latent frames from which a walk counts as two."""
WORLDPLAY_LENS = (32 / 33 * 1000 / 1920, 32 / 33 * 1000 / 1080, 0.5, 0.5)
"""Of the videos that HY-WorldPlay generates from keys: fx, fy, cx, cy in fractions of the image."""
_WALK = re.compile(r"([a-z]+)-(\d+)")


@dataclass(frozen=True)
class Track:
    """The cameras of a video.

    Args:
        at: which frames have one, ``[N]``, ascending: their numbers, or their seconds.
        seconds: whether ``at`` are seconds.
        poses: world-to-camera ``[N, 4, 4]``.
        intrinsics: fx, fy, cx, cy in fractions of the image ``[N, 4]``.
    """

    at: np.ndarray
    seconds: bool
    poses: np.ndarray
    intrinsics: np.ndarray


def read_realestate10k(path: Path) -> Track:
    """A text file of RealEstate10K.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another layout, by the line; matrices that are not rigid.
    """
    rows = []
    for number, line in read_lines(path):
        if number == 1 or not line.strip():
            continue
        try:
            rows.append([float(word) for word in line.split()])
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: {error}; {CURE}") from None
        if len(rows[-1]) != 19:
            raise ValueError(f"{path}: line {number}: {len(rows[-1])} numbers, not 19; {CURE}")
    if not rows:
        raise ValueError(f"{path}: has no cameras; {CURE}")
    table = np.array(rows)
    seconds = (table[:, 0] - table[0, 0]) / 1e6
    poses = _square(table[:, 7:].reshape(-1, 3, 4))
    return _checked(Track(seconds, True, poses, table[:, 1:5]), path)


def read_worldplay(path: Path, width: int, height: int) -> Track:
    """A JSON file of HY-WorldPlay or minWM.

    Args:
        path: of the file.
        width, height: of the video, in pixels, in which the intrinsics are.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another layout, by the frame; matrices that are not rigid.
    """
    found = read_object(path, CURE)
    if not found or not all(name.isascii() and name.isdigit() for name in found):
        raise ValueError(f"{path}: its keys are no numbers of frames; {CURE}")
    numbers = sorted(found, key=int)
    read = [_of_frame(found[name], f"{path}: frame {name}") for name in numbers]
    poses, lenses = (np.stack(each) for each in zip(*read, strict=True))
    intrinsics = lenses[:, [0, 1, 0, 1], [0, 1, 2, 2]] / [width, height, width, height]
    return _checked(Track(np.array(numbers, int), False, poses, intrinsics), path)


def parse_walk(text: str) -> list[Keys]:
    """The keys of each latent frame from minWM's string, such as ``right-8, a-11``.

    Raises:
        ValueError: a part that is no key with a number of frames.
    """
    frames: list[Keys] = []
    for part in map(str.strip, text.lower().split(",")):
        written = _WALK.fullmatch(part)
        if not written:
            raise ValueError(f"{part!r} is no key with a number of frames, such as right-8")
        frames += [held(written[1])] * int(written[2])
    return frames


def read_walk(text: str, stride: Stride) -> Track:
    """The cameras of minWM's string; the first frame is where the walk begins.

    Raises:
        ValueError: a part that is no key with a number of frames.
    """
    poses = trajectory(parse_walk(text), stride)
    lenses = np.tile(WORLDPLAY_LENS, (len(poses), 1))
    return Track(PIXEL_FRAMES * np.arange(len(poses)), False, np.asarray(poses), lenses)


def at_latents(
    track: Track, frames: int, fps: float, first: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Poses ``[F, 4, 4]`` and intrinsics ``[F, 4]`` of the latent frames of a clip.

    Latent i is seen from pixel frame 4 i: from the camera nearest to it, at most half a frame away.

    Args:
        track: of the video, which begins with its first camera.
        frames: latent ones.
        fps: of the clip.
        first: pixel frame of the video, at this rate, that the clip begins with.

    Raises:
        Refused: a frame has no camera.
    """
    numbers = first + PIXEL_FRAMES * np.arange(frames)
    wanted = track.at[0] + numbers / (fps if track.seconds else 1)
    nearest = np.abs(track.at[None] - wanted[:, None]).argmin(1)
    allowed = 0.5 / fps if track.seconds else 0
    if (away := np.abs(track.at[nearest] - wanted)).max() > allowed + 1e-9:
        raise Refused("cameras: missing", f"latent frame {int(away.argmax())} has none")
    return relative(track.poses[nearest]), track.intrinsics[nearest]


def normalised(poses: np.ndarray, step: float) -> tuple[np.ndarray, float]:
    """Poses of latent frames whose moving ones go a `step` at the median; and the factor.

    Raises:
        Refused: a clip that hardly moves, whose scale is therefore unknown, or that jumps.
    """
    moved = np.linalg.norm(np.diff(inverse(poses)[:, :3, 3], axis=0), axis=1)
    if moved.max(initial=0) < 1e-9:
        raise Refused("cameras: still", "no frame moves")
    steps = moved / np.median(moved[moved > THRESHOLD * np.quantile(moved, 0.9)])
    if steps.mean() < LEAST:
        raise Refused("cameras: still", f"{steps.mean():.2f} steps a frame, at least {LEAST}")
    if steps.max() > JUMP:
        raise Refused("cameras: jump", f"{steps.max():.1f} steps in one frame, at most {JUMP}")
    factor = float(step * steps.max() / moved.max())
    scaled = poses.copy()
    scaled[:, :3, 3] *= factor
    return scaled, factor


def cropped(intrinsics: np.ndarray, kept_width: float, kept_height: float) -> np.ndarray:
    """Intrinsics ``[F, 4]`` after a centre crop to these fractions of the image.

    Raises:
        Refused: the camera's axis is not in the middle of the image.
    """
    if not centred(intrinsics):
        cx, cy = intrinsics[0, 2:]
        raise Refused("cameras: off-centre", f"cx, cy = {cx:.3f}, {cy:.3f}, not 0.5")
    return intrinsics / [kept_width, kept_height, 1, 1]


def _of_frame(entry: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """World-to-camera ``[4, 4]`` and ``K`` ``[3, 3]`` of a frame of a JSON file."""
    for pose, lens, turn in _JSON:
        if isinstance(entry, Mapping) and {pose, lens} <= set(entry):
            matrix = _square(_numbers(entry[pose], (4, 4), f"{where}: {pose}")[None, :3])[0]
            return turn(matrix), _numbers(entry[lens], (3, 3), f"{where}: {lens}")
    known = " or ".join(f"{pose} and {lens}" for pose, lens, _ in _JSON)
    raise ValueError(f"{where}: has no {known}; {CURE}")


def _numbers(found: Any, shape: tuple[int, int], where: str) -> np.ndarray:
    try:
        numbers = np.array(found, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != shape:
        raise ValueError(f"{where} is no matrix of {shape[0]} x {shape[1]} numbers; {CURE}")
    return numbers


def _square(rows: np.ndarray) -> np.ndarray:
    """``[N, 3, 4]`` -> ``[N, 4, 4]``."""
    last = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (len(rows), 1, 4))
    return np.concatenate([rows, last], 1)


def _checked(track: Track, path: Path) -> Track:
    turned = track.poses[:, :3, :3]
    apart = np.abs(turned @ np.swapaxes(turned, 1, 2) - np.eye(3)).max((1, 2))
    right_handed = (np.cross(turned[:, 0], turned[:, 1]) * turned[:, 2]).sum(1) > 0
    sound = np.isfinite(track.poses).all((1, 2)) & (apart < RIGID) & right_handed
    if not sound.all():
        number = int(np.argmin(sound))
        raise ValueError(f"{path}: camera {number} is not rigid: no rotation; {CURE}")
    if (np.diff(track.at) <= 0).any():
        raise ValueError(f"{path}: its frames are not in order; {CURE}")
    if not np.isfinite(track.intrinsics).all() or (track.intrinsics[:, :2] <= 0).any():
        raise ValueError(f"{path}: a focal length is not positive; {CURE}")
    return track


_JSON: tuple[tuple[str, str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("extrinsic", "K", inverse),
    ("w2c", "intrinsic", lambda matrix: matrix),
)
"""Names of the matrix and of the intrinsics, and how the matrix becomes world-to-camera."""
