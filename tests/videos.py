"""Small real videos, and a folder as OpenVid's: what curation is tested on.

Every frame carries its number: eight black or white blocks, the lowest bit left, over a picture
that moves.
"""

import csv
import io
import os
import signal
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from datamodules.curation.decoding import decode as decode
from datamodules.curation.openvid import COLUMNS, Item, decode_item

BITS = 8


def picture(number, width, height):
    """Uint8 [H, W, 3]: a moving gradient with the number of the frame in its middle rows."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([(x + 3 * number) % 256, (y + 2 * number) % 256, (x + y) % 256], -1)
    band, block = slice(height // 4, 3 * height // 4), width // (BITS + 4)
    for bit in range(BITS):
        left = (2 + bit) * block
        image[band, left : left + block] = 255 * (number >> bit & 1)
    return image.astype(np.uint8)


def number_in(image):
    """The number of a frame that was scaled, but not cut at its sides."""
    height, width, _ = image.shape
    block = width / (BITS + 4)
    middle = image[height * 3 // 8 : height * 5 // 8].mean((0, 2))
    bits = [middle[int((2.5 + bit) * block)] > 127 for bit in range(BITS)]
    return sum(bit << place for place, bit in enumerate(bits))


def encode(
    frames,
    fps=16,
    *,
    codec="libx264",
    times=None,
    pixel=Fraction(1),
    colours=None,
    span=1,
    title="",
    options=None,
):
    """Bytes of an mp4.

    `times` are time stamps in units of 1 / 600 s, where the rate varies; `colours` the number of a
    matrix, `span` 1 for 16..235 and 2 for 0..255; `title` stands in the metadata; `options` are
    the encoder's.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.sample_aspect_ratio = pixel
        stream.options = {"preset": "ultrafast", "crf": "10"} if codec == "libx264" else {}
        stream.options = stream.options | (options or {})
        stream.codec_context.time_base = Fraction(1, 600)
        if colours is not None:
            stream.codec_context.colorspace = colours
        stream.codec_context.color_range = span
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=colours, dst_color_range=span)
            frame.time_base = Fraction(1, 600)
            frame.pts = times[number] if times else round(number * 600 / fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def moving(count, fps=16, width=96, height=56, **options):
    """Bytes of a video of `count` numbered frames."""
    return encode([picture(number, width, height) for number in range(count)], fps, **options)


def row(video, caption="a picture with many colours moves to the left", **changes):
    """A line of OpenVid's table."""
    line = {
        "video": video,
        "caption": caption,
        "aesthetic score": 5.5,
        "motion score": 8.0,
        "temporal consistency score": 0.99,
        "camera motion": "pan_left",
        "frame": 144,
        "fps": 24.0,
        "seconds": 6.0,
    }
    return line | changes


def write_table(path, rows, columns=COLUMNS):
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)


def openvid_folder(folder: Path, videos, rows=None):
    """A table beside `OpenVid_part0.zip` and `OpenVid_part1.zip`, each with half of the videos."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(videos)
    for part in range(2):
        with zipfile.ZipFile(folder / f"OpenVid_part{part}.zip", "w") as parts:
            for name in names[part::2]:
                parts.writestr(f"some/where/{name}", videos[name])
    write_table(folder / "OpenVid-1M.csv", rows or [row(name) for name in names])
    return folder


def decode_or_die(item: Item) -> np.ndarray:
    """A decoder that some videos kill."""
    if item.row.video.startswith("killer"):
        os.kill(os.getpid(), signal.SIGKILL)
    return decode_item(item)
