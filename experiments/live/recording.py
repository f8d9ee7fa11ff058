"""Recordings: the events of a session by block, and a digest of every frame.

A file of one JSON object a line, written block by block, so that a killed server leaves one that
can be read::

    {"format": 1, "students": [...], "prompt": "...", "seed": 0, "steps": 2, "revision": "...",
     "machine": {...}, "picture": "...", "start": [x, z, yaw]}
    {"block": 17, "prompt": "...", "how": "rewrite"}
    {"block": 17, "keys": ["l", "w"]}
    {"frame": 17, "lane": 0, "digest": "..."}

The picture is the first frame that was given, a PNG in base64, and the start is where its camera
was in the world of the training data; null: none was given, or it is not known.
"""

from __future__ import annotations

import io
import json
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.curation.text_lists import read_lines
from experiments.generation.events import Event, NewKeys, NewPrompt, NewSteps
from experiments.generation.session import Block
from experiments.runs.signature import bind
from lightning_modules.ranges import NonNegativeInt, PositiveInt, Seed, SolverSteps

FORMAT = 1
_BOMB = Image.DecompressionBombError


def digest_of(frame: np.ndarray) -> str:
    """16 hex digits of a frame's pixels, before they are compressed."""
    return blake2b(np.ascontiguousarray(frame).tobytes(), digest_size=8).hexdigest()


def as_png(frame: np.ndarray) -> bytes:
    """A frame uint8 ``[H, W, 1 or 3]`` as a file, without loss."""
    with io.BytesIO() as file:
        Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame).save(file, "PNG")
        return file.getvalue()


def _from_png(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"a picture of mode {image.mode}")
        return np.array(image).reshape(*image.size[::-1], -1)


class Recorder:
    """Writes a recording.

    Args:
        file: the new file; its folder is made.
        header: all that is not an event.
    """

    def __init__(self, file: Path, header: Mapping[str, Any]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file
        self._stream = file.open("x", encoding="utf-8")
        self._write({"format": FORMAT, **header})

    def add(self, lane: int, block: Block, digests: list[str]) -> None:
        """A block of a student; its events are those of lane 0."""
        for event in block.events if lane == 0 else ():
            self._write({"block": block.index, **event.as_dict()})
        for number, digest in enumerate(digests, block.first):
            self._write({"frame": number, "lane": lane, "digest": digest})
        self._stream.flush()

    def close(self) -> None:
        """The recording is whole."""
        self._stream.close()

    def _write(self, content: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(content) + "\n")


@dataclass
class Recording:
    """A recording as it was read."""

    prompt: str
    seed: int
    steps: int
    students: list[dict[str, Any]]
    events: dict[int, list[Event]] = field(default_factory=dict)
    digests: dict[tuple[int, int], str] = field(default_factory=dict)
    revision: str = "unknown"
    machine: dict[str, Any] = field(default_factory=dict)
    picture: np.ndarray | None = None
    start: tuple[float, float, float] | None = None

    @property
    def frames(self) -> int:
        """Frames of lane 0."""
        return sum(lane == 0 for lane, _ in self.digests)


def _header(
    *,
    format: PositiveInt,
    prompt: str,
    seed: Seed,
    steps: SolverSteps,
    machine: dict[str, Any],
    revision: str = "unknown",
    picture: str | None = None,
    start: tuple[float, float, float] | None = None,
) -> None: ...


def _frame(*, frame: NonNegativeInt, lane: NonNegativeInt, digest: str) -> None: ...


def read_recording(file: Path) -> Recording:
    """The recording in a file; a last line that was cut off is left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is none; names the line.
    """
    lines = [(number, line) for number, line in read_lines(file) if line]
    recording: Recording | None = None
    for position, (number, line) in enumerate(lines):
        try:
            found = json.loads(line)
        except ValueError as error:
            if position and position == len(lines) - 1:
                break
            raise ValueError(f"{file}: line {number} is not JSON ({error}): no recording") from None
        try:
            recording = _taken(recording, found)
        except (ValueError, AttributeError, TypeError, OSError, SyntaxError, _BOMB) as error:
            raise ValueError(f"{file}: line {number} is none of a recording ({error})") from None
    if recording is None:
        raise ValueError(f"{file}: empty, no recording")
    return recording


def _taken(recording: Recording | None, found: dict[str, Any]) -> Recording:
    """The recording with one line more."""
    if recording is None:
        students = found.pop("students", None)
        header = bind(_header, found, section="header")
        if (version := header.pop("format")) != FORMAT:
            raise ValueError(f"format {version}; this program reads {FORMAT}")
        if not students or not all(isinstance(each, dict) for each in students):
            raise ValueError("students: names no student")
        if (picture := header.get("picture")) is not None:
            header["picture"] = _from_png(b64decode(picture, validate=True))
        return Recording(students=students, **header)
    if "frame" in found:
        frame = bind(_frame, found, section="frame")
        recording.digests[frame["lane"], frame["frame"]] = frame["digest"]
        return recording
    block = found.pop("block")
    if type(block) is not int or block < 0:
        raise ValueError(f"block: {block!r}")
    if "prompt" in found:
        event: Event = NewPrompt(
            **bind(NewPrompt, {"text": found.pop("prompt"), **found}, section="event")
        )
    elif "keys" in found:
        event = NewKeys(**bind(NewKeys, found, section="event"))
    else:
        event = NewSteps(**bind(NewSteps, found, section="event"))
    recording.events.setdefault(block, []).append(event)
    return recording
