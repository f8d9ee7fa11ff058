"""Clips from shards as small images: the strips of frames of the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHOWN_FRAMES = 8
TALLEST = 96  # px; larger frames are scaled down


@dataclass(frozen=True)
class Clip:
    """One clip: its caption and its frames, uint8 [T, H, W, c]."""

    caption: str
    video: np.ndarray


def read_clips(run: Path, count: int, keys: Sequence[str] = ()) -> dict[str, Clip]:
    """The first `count` clips of a run by key, or those of `keys` that it has; {} without pixels.

    Raises:
        FileNotFoundError, ValueError: the run's shards are missing or damaged (they are named).
    """
    from datamodules.shards.reader import open_shards  # imports torch

    shards = open_shards(run / "shards")
    if "video" not in shards.fields:
        return {}
    at = {key: number for number, key in enumerate(shards.keys)}
    wanted = [key for key in keys if key in at] if keys else shards.keys[:count]
    samples = [shards.read(at[key], ["video"]) for key in wanted]
    return {sample["key"]: Clip(sample["caption"], sample["video"]) for sample in samples}


def strip_png(video: np.ndarray) -> bytes:
    """Frames side by side as PNG, at most eight, evenly spaced; `video` is uint8 [T, H, W, c]."""
    from PIL import Image

    times = np.unique(np.linspace(0, len(video) - 1, SHOWN_FRAMES).round().astype(int))
    frames = [video[t] for t in times]
    height, width, channels = frames[0].shape
    gap = np.full((height, 1, channels), 128, np.uint8)
    strip = np.concatenate([part for frame in frames for part in (frame, gap)][:-1], axis=1)
    picture = Image.fromarray(strip[..., 0] if channels == 1 else strip)
    if height > TALLEST:
        picture = picture.resize((round(picture.width * TALLEST / height), TALLEST))
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


def data_uri(png: bytes) -> str:
    """A PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
