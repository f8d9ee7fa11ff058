"""Videos with a file of cameras each: the clip, and the camera of each of its latent frames.

The table has a row for each video: `video`, `cameras` and `caption`; files are below its folder.
Cameras are a file of RealEstate10K (.txt) or of HY-WorldPlay and minWM (.json), or the keys that
the video was made with (``right-8, a-11``), see `camera_files.py`. A long video gives several
clips, one after the other, each from a latent frame's first pixel frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.cameras import Stride, to_stored
from datamodules.curation.camera_files import (
    PIXEL_FRAMES,
    Track,
    at_latents,
    cropped,
    normalised,
    read_realestate10k,
    read_walk,
    read_worldplay,
)
from datamodules.curation.decoding import ClipSpec, Shown, decode, fit, shown
from datamodules.curation.refusal import Refusal, Refused
from datamodules.curation.text_lists import read_records
from datamodules.curation.video_files import VideoFile

COLUMNS = ("video", "cameras", "caption")
CURE = "its columns are video, cameras and caption, with files below its folder"
_SLACK = 0.02  # of a rate, as containers round it


class Row(NamedTuple):
    """A row of the table."""

    video: str
    cameras: str
    caption: str


@dataclass(frozen=True)
class Item:
    """What becomes a sample.

    Args:
        row: of the table.
        folder: that both files are below.
        spec: of the clip.
        latents: frames that the VAE makes of it.
        stride: of keys; its step is that of the moving latent frames, at the median.
        window: of the video, from 0 on.
    """

    row: Row
    folder: Path
    spec: ClipSpec
    latents: int
    stride: Stride
    window: int = 0

    @property
    def first(self) -> int:
        """Pixel frame of the video, at the clip's rate, that the clip begins with."""
        return self.window * PIXEL_FRAMES * self.latents

    @property
    def name(self) -> str:
        """Of the clip: that of the video, and from the second window on its number."""
        return f"{self.row.video}#{self.window}" if self.window else self.row.video


class Posed(NamedTuple):
    """A clip ``[T, H, W, 3]`` with poses ``[F, 3, 4]`` and intrinsics ``[F, 4]``, float32.

    ``scale`` is the factor by which its positions were multiplied.
    """

    clip: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray
    scale: float


def read_table(path: Path) -> Iterator[Row | Refusal]:
    """The rows of a table; one that will not do is a refusal.

    Raises:
        FileNotFoundError, ValueError: as `read_records`.
    """
    for record in read_records(path, COLUMNS, CURE):
        row = Row(*(record.values.get(name, "").strip() for name in COLUMNS))
        if record.problem:
            yield Refusal(f"line {record.line}", "table: damaged", record.problem)
        elif not all(row):
            lacks = COLUMNS[row.index("")]
            yield Refusal(row.video or f"line {record.line}", "table: empty", f"no {lacks}")
        elif any(".." in Path(name).parts or Path(name).is_absolute() for name in row[:2]):
            yield Refusal(row.video, "table: elsewhere", "its files are not below the table")
        else:
            yield row


def decode_posed(item: Item) -> Posed:
    """The clip and its cameras.

    Raises:
        Refused: a video or a file of cameras that will not do, with the reason.
    """
    video = VideoFile(str(item.folder / item.row.video)).read()
    size = shown(video)
    track, is_walk = _track(item, size)
    if not track.seconds and abs(size.rate / item.spec.fps - 1) > _SLACK:
        raise Refused(
            "cameras: rate",
            f"they are of numbered frames, at {size.rate:.2f} fps; the clip has {item.spec.fps}",
        )
    poses, intrinsics = at_latents(track, item.latents, item.spec.fps, item.first)
    poses, scale = (poses, 1.0) if is_walk else normalised(poses, item.stride.step)
    place = fit(size.width, size.height, size.pixel, item.spec)
    kept = item.spec.width / place.width, item.spec.height / place.height
    lenses = cropped(intrinsics, *kept).astype(np.float32)
    clip = decode(video, item.spec, Fraction(item.first, item.spec.fps))
    return Posed(clip, to_stored(poses), lenses, scale)


def _track(item: Item, size: Shown) -> tuple[Track, bool]:
    """The cameras of its video, and whether they are a walk by keys."""
    path = item.folder / item.row.cameras
    try:
        if path.suffix.lower() == ".txt":
            return read_realestate10k(path), False
        if path.suffix.lower() == ".json":
            return read_worldplay(path, size.width, size.height), False
    except (OSError, ValueError) as error:
        raise Refused("cameras: unreadable", str(error)) from error
    try:
        return read_walk(item.row.cameras, item.stride), True
    except ValueError as error:
        raise Refused("cameras: unknown", f"no .txt, no .json, and no walk: {error}") from None
