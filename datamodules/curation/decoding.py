"""From an encoded video to the clip a network is trained on: [T, H, W, 3] at one rate and size.

Frames are selected by time stamp, not by number, since rates differ and may vary within a video:
frame k is the one nearest to time k / fps. Frames are resized to cover the target size and
centre-cropped. Besides the clip, one frame is in memory at a time.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, TypeVar

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Colorspace, Interpolation

from datamodules.curation.refusal import Refused
from lightning_modules.ranges import FrameRate, NonNegative, Positive, PositiveInt

Frame = TypeVar("Frame")
_HD = 720  # height from which untagged video is BT.709 and not BT.601, as players assume
_RATE_SLACK = 0.98  # containers round rates and the length of the last frame
# Without the others white comes out as 253, and another processor rounds in another way.
_SCALING = (
    Interpolation.LANCZOS
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.BITEXACT
)
_MATRICES = {  # by the number in the stream (ITU-T H.273, MatrixCoefficients)
    0: Colorspace.ITU709,  # RGB, which no matrix is applied to
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
}
_UNTAGGED = (2, 3)  # unspecified, reserved
_NOT_DISPLAYED = {  # TransferCharacteristics whose values are not those of an ordinary screen
    8: "linear light",
    9: "logarithmic",
    10: "logarithmic",
    16: "HDR, PQ (SMPTE ST 2084)",
    17: "digital cinema (SMPTE ST 428)",
    18: "HDR, HLG (ARIB STD-B67)",
}


@dataclass(frozen=True)
class ClipSpec:
    """Size and rate of a clip, and the requirements on its video.

    Args:
        frames: T.
        fps: of the clip.
        height, width: of the clip, in pixels.
        aspect: least and most width / height of the video as displayed.
        enlarge: largest upscaling factor; 1 allows none.
        least_fps: of the video; below `fps` frames are repeated.
    """

    frames: PositiveInt
    fps: FrameRate
    height: PositiveInt
    width: PositiveInt
    aspect: tuple[Positive, Positive]
    enlarge: Positive
    least_fps: NonNegative

    def __post_init__(self) -> None:
        wanted = self.width / self.height
        if not self.aspect[0] <= wanted <= self.aspect[1]:
            raise ValueError(
                f"aspect: {self.aspect} leaves out the clip's own {wanted:.3f}"
                f" ({self.width} x {self.height}); widen it"
            )


class Fit(NamedTuple):
    """A frame resized to `width` x `height`, cropped at (`left`, `top`)."""

    width: int
    height: int
    left: int
    top: int


class Shown(NamedTuple):
    """Of a video: the size of its frames, the aspect ratio of a pixel, frames a second."""

    width: int
    height: int
    pixel: Fraction
    rate: float


def shown(video: bytes) -> Shown:
    """What a video says of itself; no frame is decoded.

    Raises:
        Refused: it is damaged, or says no rate.
    """
    try:
        with av.open(io.BytesIO(video), metadata_errors="replace") as container:
            stream = _film(container)
            if stream.average_rate is None:
                raise Refused("too slow", "its rate is unknown")
            pixel = stream.sample_aspect_ratio or Fraction(1)
            return Shown(stream.width, stream.height, pixel, float(stream.average_rate))
    except (av.error.FFmpegError, EOFError) as error:
        raise Refused("damaged", f"{type(error).__name__}: {error}") from error


def decode(video: bytes, spec: ClipSpec, start: Fraction = Fraction(0)) -> np.ndarray:
    """`spec.frames` frames at `spec.fps`, uint8 [T, H, W, 3].

    Args:
        video: encoded.
        spec: of the clip.
        start: seconds after the video's first frame at which the clip begins.

    Raises:
        Refused: the video is damaged, too short, too slow, too small, of another shape, rotated,
            interlaced, or its colours need tone mapping (HDR).
    """
    try:
        with av.open(io.BytesIO(video), metadata_errors="replace") as container:
            return _decode(container, spec, start)
    except (av.error.FFmpegError, EOFError) as error:
        raise Refused("damaged", f"{type(error).__name__}: {error}") from error


def choose(
    frames: Iterable[tuple[Fraction, Frame]], count: int, fps: int, after: Fraction = Fraction(0)
) -> Iterator[tuple[int, Frame]]:
    """(k, frame) for k = 0 .. count-1: the one nearest to the first one's time + after + k / fps.

    Ties go to the earlier frame. Ends early where the last frame is more than half a period before
    the target time.

    Args:
        frames: (time in seconds, frame), times increasing.
        count: number of frames.
        fps: target rate.
        after: seconds.
    """
    wanted, start, last = 0, None, None
    for time, frame in frames:
        start = time + after if start is None else start
        while last is not None and wanted < count:
            target = start + Fraction(wanted, fps)
            if time - target < target - last[0]:  # this frame, or a later one, is nearer
                break
            yield wanted, last[1]
            wanted += 1
        if wanted == count:
            return
        last = time, frame
    while last is not None and wanted < count:
        if start + Fraction(wanted, fps) - last[0] > Fraction(1, 2 * fps):
            return
        yield wanted, last[1]
        wanted += 1


def fit(width: int, height: int, pixel: Fraction, spec: ClipSpec) -> Fit:
    """Resize and crop of a `width` x `height` frame with pixel aspect ratio `pixel`.

    Raises:
        Refused: its shape is outside `spec.aspect`, or it is too small.
    """
    shown = width * float(pixel)
    if not spec.aspect[0] <= shown / height <= spec.aspect[1]:
        least, most = spec.aspect
        raise Refused("aspect", f"{shown / height:.3f} is not in {least:.3f}..{most:.3f}")
    scale = max(spec.width / shown, spec.height / height)
    if scale > spec.enlarge * (1 + 1e-9):
        raise Refused(
            "too small",
            f"{width} x {height} would be enlarged {scale:.2f} times to {spec.width} x"
            f" {spec.height}",
        )
    wide = max(spec.width, round(shown * scale))
    high = max(spec.height, round(height * scale))
    return Fit(wide, high, (wide - spec.width) // 2, (high - spec.height) // 2)


def _film(container: av.container.InputContainer) -> av.VideoStream:
    films = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not films:
        raise Refused("damaged", "no video in it")
    return films[0]


def _decode(container: av.container.InputContainer, spec: ClipSpec, start: Fraction) -> np.ndarray:
    stream = _film(container)
    stream.codec_context.thread_count = 1  # one thread: parallelism is across workers
    rate = stream.average_rate
    if rate is None or rate < _RATE_SLACK * spec.least_fps:
        found = "its rate is unknown" if rate is None else f"{float(rate):.2f} fps"
        raise Refused("too slow", f"{found}; at least {spec.least_fps:g} fps are wanted")
    pixel = stream.sample_aspect_ratio or Fraction(1)
    clip = np.empty((spec.frames, spec.height, spec.width, 3), np.uint8)
    done, counter = 0, _Counted(container.decode(stream))
    for k, frame in choose(counter, spec.frames, spec.fps, start):
        if frame is not counter.drawn:
            picture, counter.drawn = _picture(frame, pixel, spec), frame
        clip[k] = picture
        done = k + 1
    if done < spec.frames:
        seconds = float(start) + (spec.frames - 1) / spec.fps
        raise Refused(
            "too short",
            f"{counter.count} frames in {float(counter.seconds):.2f} s give {done} of"
            f" {spec.frames} at {spec.fps} fps, which span {seconds:.2f} s",
        )
    return clip


class _Counted:
    """(time, frame) of decoded frames; keeps their count and the last one."""

    def __init__(self, frames: Iterable[av.VideoFrame]) -> None:
        self._frames = frames
        self.count, self.seconds = 0, Fraction(0)
        self.drawn: av.VideoFrame | None = None

    def __iter__(self) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        first = last = None
        for frame in self._frames:
            if frame.is_corrupt:
                raise Refused("damaged", f"frame {self.count} is corrupt")
            if frame.pts is None or frame.time_base is None:
                raise Refused("time stamps", f"frame {self.count} has none")
            time = frame.pts * frame.time_base
            if last is not None and time <= last:
                raise Refused("time stamps", f"frame {self.count} is not after the one before")
            first = time if first is None else first
            last, self.seconds = time, time - first
            self.count += 1
            yield time, frame


def _picture(frame: av.VideoFrame, pixel: Fraction, spec: ClipSpec) -> np.ndarray:
    """Uint8 [H, W, 3], black 0 and white 255 whatever the video's range."""
    _refuse_conversions(frame)
    place = fit(frame.width, frame.height, pixel, spec)
    guess = Colorspace.ITU709 if frame.height >= _HD else Colorspace.ITU601
    scaled = frame.reformat(
        width=place.width,
        height=place.height,
        format="rgb24",
        src_colorspace=_MATRICES.get(frame.colorspace, guess),
        src_color_range=frame.color_range,
        interpolation=_SCALING,
        threads=1,
    ).to_ndarray()
    return scaled[place.top : place.top + spec.height, place.left : place.left + spec.width]


def _refuse_conversions(frame: av.VideoFrame) -> None:
    """Refuse what would be combed, washed out or lie on its side if it were taken as it is."""
    if frame.rotation % 360:
        raise Refused("rotated", f"by {frame.rotation} degrees")
    if frame.interlaced_frame:
        raise Refused("interlaced", "a frame holds two moments; deinterlace the video")
    if transfer := _NOT_DISPLAYED.get(frame.color_trc):
        raise Refused("transfer", f"{transfer}; tone-map the video to BT.709")
    if frame.colorspace not in (*_MATRICES, *_UNTAGGED):
        raise Refused("colour matrix", f"number {frame.colorspace} of ITU-T H.273 is not supported")
