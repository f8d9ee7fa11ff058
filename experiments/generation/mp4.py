"""Clips as mp4 files: what people watch and other programs judge."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from datamodules.atomic import replacing

_QUALITY = {"crf": "18", "preset": "medium"}  # visually lossless


def clip_file(run: Path, key: str) -> Path:
    """Where a sample run keeps the clip of a sample.

    By its key, which is unique and safe; published code names files after the first 100 characters
    of the prompt, and loses those that share them.
    """
    return run / "videos" / f"{key}.mp4"


def write_mp4(path: Path, video: np.ndarray, fps: float) -> None:
    """Write pixels uint8 ``[T, H, W, 1 or 3]``: H.264, yuv420p; whole or not at all.

    One thread: equal pixels give equal bytes.

    Raises:
        ValueError: sides that are not even.
    """
    _, height, width, _ = video.shape
    if height % 2 or width % 2:
        raise ValueError(f"{path}: yuv420p needs even sides, the clip is {height} x {width}")
    with replacing(path) as part, av.open(str(part), "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options=_QUALITY)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in np.broadcast_to(video, (*video.shape[:3], 3)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
