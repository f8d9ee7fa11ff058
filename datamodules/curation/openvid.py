"""OpenVid-1M (Nan et al. 2024, arXiv 2407.02371): its table, and the filter of its rows.

The table (`OpenVid-1M.csv`, `OpenVidHD.csv`) holds the authors' measurements. Only the scores are
trusted: size, rate and length of a video are measured again when it is decoded.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.curation.decoding import ClipSpec, decode
from datamodules.curation.refusal import Refused
from datamodules.curation.video_files import VideoFile
from settings.ranges import Finite, NonNegative, NonNegativeInt, Positive

_NUMBERS = {
    "aesthetic": "aesthetic score",
    "motion": "motion score",
    "consistency": "temporal consistency score",
    "frames": "frame",
    "fps": "fps",
    "seconds": "seconds",
}
COLUMNS = ("video", "caption", *_NUMBERS.values(), "camera motion")
_CLIP = re.compile(r"_\d+(_\d+to\d+)?$")  # of a source's name: "IIvwqskxtdE_12", "..._18_0to237"


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        video: file name, such as ``IIvwqskxtdE_0.mp4``.
        caption: a paragraph.
        aesthetic: LAION's aesthetic score.
        motion: mean optical flow, in pixels.
        consistency: similarity of neighbouring frames, up to 1.
        frames, fps, seconds: according to the table.
        camera_motion: a description; empty where unknown.
    """

    video: str
    caption: str
    aesthetic: float
    motion: float
    consistency: float
    frames: float
    fps: float
    seconds: float
    camera_motion: str

    @property
    def key(self) -> str:
        """The file name without its suffix: key of split and order."""
        return Path(self.video).stem

    @property
    def source(self) -> str:
        """The recording that the clip was cut from, inferred from its name."""
        return _CLIP.sub("", self.key)


@dataclass(frozen=True)
class Limits:
    """Which rows are accepted; None is no limit.

    Args:
        aesthetic: at least.
        motion: at least and at most.
        consistency: at least.
        seconds: at least.
        fps: at least; below the target rate frames would be repeated.
        words: at least, in the caption.
    """

    aesthetic: Finite | None = None
    motion: tuple[NonNegative, NonNegative] | None = None
    consistency: Finite | None = None
    seconds: NonNegative | None = None
    fps: Positive | None = None
    words: NonNegativeInt = 1

    def __post_init__(self) -> None:
        if self.motion is not None and not 0 <= self.motion[0] < self.motion[1]:
            raise ValueError(f"limits.motion: {self.motion} is no range; write [least, most]")

    def check(self, row: Row) -> None:
        """Raise `Refused` for the first limit that the row violates."""
        for name in ("aesthetic", "consistency", "seconds", "fps"):
            least, found = getattr(self, name), getattr(row, name)
            if least is not None and not found >= least:  # also rejects NaN
                raise Refused(f"table: {name}", f"{found:g} is below {least:g}")
        if self.motion is not None and not self.motion[0] <= row.motion <= self.motion[1]:
            least, most = self.motion
            raise Refused("table: motion", f"{row.motion:g} is not in {least:g}..{most:g}")
        if len(row.caption.split()) < self.words:
            raise Refused("table: caption", f"fewer than {self.words} words")


class Item(NamedTuple):
    """A row of the table, its video file, and the clip to extract."""

    row: Row
    file: VideoFile
    spec: ClipSpec


def decode_item(item: Item) -> np.ndarray:
    """The clip, uint8 [T, H, W, 3]; called in the processes of `Workers`.

    Damaged files make readers raise almost anything: an encrypted member of a zip raises
    RuntimeError, an unknown compression NotImplementedError. All of these reject the video only.

    Raises:
        Refused: the video is unusable.
        OSError, MemoryError: a failure of the disk or machine, not of the video.
    """
    try:
        return decode(item.file.read(), item.spec)
    except (Refused, OSError, MemoryError):
        raise
    except Exception as error:
        found = f"in {item.file.path}: {type(error).__name__}: {error}"
        raise Refused("damaged", found) from error


def read_table(path: Path) -> Iterator[Row]:
    """Rows of the table, one at a time. Invalid numbers are read as NaN, which no limit accepts.

    Raises:
        FileNotFoundError: no such file; names the existing tables.
        ValueError: a column is missing; names it and those present.
    """
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in path.parent.glob("*.csv"))) or "no .csv"
        raise FileNotFoundError(f"{path}: no such table; {path.parent} has {there}")
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        table = csv.DictReader(file)
        present = table.fieldnames or []
        if missing := [name for name in COLUMNS if name not in present]:
            raise ValueError(
                f"{path}: no column {', '.join(map(repr, missing))}; it has"
                f" {', '.join(map(repr, present)) or 'none'}; use OpenVid's own table"
            )
        for line in table:
            numbers = {name: _number(line[column]) for name, column in _NUMBERS.items()}
            yield Row(
                video=(line["video"] or "").strip(),
                caption=" ".join((line["caption"] or "").split()),
                camera_motion=(line["camera motion"] or "").strip(),
                **numbers,
            )


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
