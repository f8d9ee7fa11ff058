"""OpenVid-1M (Nan et al. 2024, arXiv 2407.02371): its table, and the filter of its rows.

The table (`OpenVid-1M.csv`, `OpenVidHD.csv`) holds the authors' measurements. Only the scores are
trusted: size, rate and length of a video are measured again when it is decoded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.curation.decoding import ClipSpec, decode
from datamodules.curation.refusal import Refusal, Refused
from datamodules.curation.text_lists import read_records, words_in
from datamodules.curation.video_files import VideoFile
from lightning_modules.ranges import Finite, NonNegative, NonNegativeInt, Positive

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
            if least is not None:
                _require_number(name, found)
                if not found >= least:  # nor is a limit of NaN kept
                    raise Refused(f"table: {name}", f"{found:g} is below {least:g}")
        if self.motion is not None:
            least, most = self.motion
            _require_number("motion", row.motion)
            if not least <= row.motion <= most:
                raise Refused("table: motion", f"{row.motion:g} is not in {least:g}..{most:g}")
        if words_in(row.caption) < self.words:
            raise Refused("table: caption", f"fewer than {self.words} words")


def _require_number(name: str, found: float) -> None:
    """A limit asks for a score: one that is missing, infinite or no number refuses the row."""
    if not math.isfinite(found):
        raise Refused(f"table: {name}: no score", f"{found} is no number")


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


def read_table(path: Path) -> Iterator[Row | Refusal]:
    """Rows of the table, one at a time, and the records that are none.

    Invalid numbers are read as NaN, which no limit accepts. Of a path only the file name is taken.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing, or as `text_lists`; names file and line.
    """
    for record in read_records(path, COLUMNS, "use OpenVid's own table"):
        if record.problem:
            yield Refusal(f"line-{record.line}", "table: fields", record.problem)
            continue
        line = record.values
        yield Row(
            video=line["video"].strip().replace("\\", "/").rpartition("/")[2],
            caption=" ".join(line["caption"].split()),
            camera_motion=line["camera motion"].strip(),
            **{name: _number(line[column]) for name, column in _NUMBERS.items()},
        )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
