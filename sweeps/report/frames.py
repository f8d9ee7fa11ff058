"""Clips out of shards as small pictures: the strip of frames of the page.

Reads `key.video.npy` (uint8 [T, H, W, c]) and `key.json` (caption) straight from the tars of a
folder of shards; nothing is unpickled and no tar is read further than needed.
"""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Collection
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


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar")) or sorted((folder / "shards").glob("*.tar"))


def read_clips(folder: Path, count: int, keys: Collection[str] | None = None) -> dict[str, Clip]:
    """The first `count` clips by key, or those with the given keys; fewer when there are no more.

    Raises:
        ValueError: a tar cannot be read (it is named).
    """
    clips: dict[str, Clip] = {}
    for path in _shards(folder):
        videos: dict[str, np.ndarray] = {}
        captions: dict[str, str] = {}
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    key, _, field = member.name.partition(".")
                    if keys is not None and key not in keys:
                        continue
                    if field == "video.npy":
                        data = io.BytesIO(tar.extractfile(member).read())
                        videos[key] = np.load(data, allow_pickle=False)
                    elif field == "json":
                        captions[key] = json.load(tar.extractfile(member)).get("caption", "")
                    if key in videos and key in captions and key not in clips:
                        clips[key] = Clip(captions[key], videos[key])
                        if len(clips) == count:
                            return clips
        except (tarfile.TarError, EOFError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} cannot be read ({error}); sample this run again") from None
    return clips


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
