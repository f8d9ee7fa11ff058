"""Clips as mp4 files, for viewing and for external benchmarks."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from datamodules.atomic import replacing

_QUALITY = {"crf": "18", "preset": "medium"}  # visually lossless


def clip_file(run: Path, key: str) -> Path:
    """The mp4 of a sample in a sample run.

    Named by its key, which is unique; published code uses the first 100 characters of the prompt
    and overwrites clips whose prompts share them.
    """
    return run / "videos" / f"{key}.mp4"


def write_mp4(path: Path, video: np.ndarray, fps: float) -> None:
    """Write pixels uint8 ``[T, H, W, 1 or 3]`` as H.264, yuv420p, atomically.

    Single-threaded, so that equal pixels give equal bytes.

    Raises:
        ValueError: an odd height or width.
    """
    _, height, width, _ = video.shape
    if height % 2 or width % 2:
        raise ValueError(f"{path}: yuv420p needs even sides, the clip is {height} x {width}")
    with replacing(path) as part, av.open(str(part), "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options=_QUALITY)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1
        for image in np.broadcast_to(video, (*video.shape[:3], 3)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
