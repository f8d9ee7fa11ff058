"""Clips as mp4 files, for viewing and for external benchmarks."""

from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
)

from datamodules.atomic import replacing

_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
_SCALING |= Interpolation.BITEXACT
_QUALITY = {"crf": "18", "preset": "medium"}  # visually lossless


def clip_file(run: Path, key: str) -> Path:
    """The mp4 of a sample in a sample run.

    Named by its key, which is unique; published code uses the first 100 characters of the prompt
    and overwrites clips whose prompts share them.
    """
    return run / "videos" / f"{key}.mp4"


def write_mp4(path: Path, video: Iterable[np.ndarray], fps: float) -> None:
    """Write frames uint8 ``[H, W, 1 or 3]`` as H.264, yuv420p, atomically, one after the other.

    Converted by the matrix of BT.709 into the range 16..235, and tagged so: untagged files are
    shown in other colours by players that take anything below 720 lines for BT.601.
    Single-threaded, so that equal pixels give equal bytes.

    Raises:
        ValueError: an odd height or width.
    """
    frames = iter(video)
    first = next(frames)
    height, width, _ = first.shape
    if height % 2 or width % 2:
        raise ValueError(f"{path}: yuv420p needs even sides, the clip is {height} x {width}")
    with replacing(path) as part, av.open(str(part), "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options=_QUALITY)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1
        _tag(stream.codec_context)
        for image in chain([first], frames):
            colours = np.ascontiguousarray(np.broadcast_to(image, (height, width, 3)))
            frame = av.VideoFrame.from_ndarray(colours, format="rgb24")
            container.mux(stream.encode(_converted(frame)))
        container.mux(stream.encode())


def _converted(frame: av.VideoFrame) -> av.VideoFrame:
    """RGB -> yuv420p of BT.709, with its tags."""
    converted = frame.reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=_SCALING,
        threads=1,
    )
    _tag(converted)
    return converted


def _tag(target: av.VideoFrame | av.VideoCodecContext) -> None:
    target.color_primaries, target.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    target.colorspace, target.color_range = Colorspace.ITU709, ColorRange.MPEG
