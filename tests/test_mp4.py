"""Clips as mp4 files: their colours, their names, and files that are damaged."""

import av
import numpy as np
import pytest

from datamodules.curation.decoding import ClipSpec, decode
from experiments.generation.mp4 import clip_file, write_mp4
from experiments.worlds.wan.vbench import read_gray


def test_a_clip_as_a_video(tmp_path):
    ramp = np.linspace(0, 255, 32, dtype=np.uint8)
    video = np.broadcast_to(ramp, (5, 16, 32))[..., None]
    path = clip_file(tmp_path, "key-1")
    write_mp4(path, video, 16)
    first = path.read_bytes()
    write_mp4(path, video, 16)
    assert path.read_bytes() == first and [p.name for p in path.parent.iterdir()] == ["key-1.mp4"]
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    assert len(frames) == 5 and np.abs(frames[2].astype(int) - video[2, ..., 0]).mean() < 4


@pytest.mark.parametrize("size", [(64, 96), (720, 1280)])
def test_colours_of_a_video_are_tagged_and_converted_as_tagged(tmp_path, size):
    """By the tag, and not by what players guess from the height."""
    for colour in ((200, 40, 40), (30, 180, 60), (20, 60, 220), (0, 0, 0), (255, 255, 255)):
        path = tmp_path / "clip.mp4"
        write_mp4(path, np.full((2, *size, 3), colour, np.uint8), 16)
        with av.open(str(path)) as container:
            about = container.streams.video[0].codec_context
            tags = about.color_primaries, about.color_trc, about.colorspace, about.color_range
            planes = next(container.decode(video=0)).to_ndarray().ravel()
        assert tags == (1, 1, 1, 1)
        luma = planes[: size[0] * size[1]].astype(float)
        expected = 16 + 219 / 255 * np.dot((0.2126, 0.7152, 0.0722), colour)
        assert np.abs(luma - expected).max() <= 1.5
        wanted = ClipSpec(1, 16, *size, aspect=(1, 2), enlarge=1, least_fps=1)
        read = decode(path.read_bytes(), wanted).astype(int)
        assert np.abs(read - colour).max() <= 3


def test_a_video_that_fails_leaves_the_old_one(tmp_path):
    path = clip_file(tmp_path, "key")
    write_mp4(path, np.zeros((2, 16, 16, 3), np.uint8), 16)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="even sides, the clip is 15 x 16"):
        write_mp4(path, np.zeros((2, 15, 16, 3), np.uint8), 16)
    assert path.read_bytes() == before


def test_a_damaged_video_is_named(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="bad.mp4: does not decode.*sample again"):
        read_gray(tmp_path / "bad.mp4")
    with pytest.raises(FileNotFoundError, match="sampling.save=mp4"):
        read_gray(tmp_path / "none.mp4")
