"""Panels of prompts without a real clip, and of clips of Wan's size in little memory."""

from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from toy_training import Toy, fit

from callbacks.sample_clips import Panel, SampleClips


class Wide:
    """Turns latents into 30 frames of 24 x 416 pixels whose columns are 0, 2, 0, 2, ... and k."""

    def __init__(self) -> None:
        self.decoded: list[tuple[int, torch.dtype]] = []

    def decode(self, latents: Tensor) -> Tensor:
        self.decoded.append((len(latents), latents.dtype))
        video = torch.zeros(len(latents), 30, 24, 416, 3, dtype=torch.uint8)
        video[:, :, :, 1:208:2] = 2
        video[:, :, :, 208:] = 8 * torch.arange(30)[:, None, None, None]
        return video


class Notes(Toy):
    """Remembers what it was asked for, and in what precision."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[list[str], bool]] = []

    def sample(self, text: Tensor, keys: list[str]) -> Tensor:
        assert len(text) == len(keys)
        self.asked.append((list(keys), torch.is_autocast_enabled("cpu")))
        return super().sample(text, keys)


@contextmanager
def autocast():
    with torch.autocast("cpu", torch.bfloat16):
        yield


def test_prompts_alone_are_shown_clip_by_clip_and_small(tmp_path):
    panel = Panel(torch.zeros(3, 5, 3), ["a", "b", "c"], ["one", "two", "three"], None)
    wide, module = Wide(), Notes()
    shown = SampleClips(panel, wide, tmp_path, every=10, fps=16, at_once=2, autocast=autocast)
    fit(tmp_path, [shown], module)
    assert module.asked == [(["a", "b"], True), (["c"], True)]
    assert wide.decoded == [(1, torch.float32)] * 3
    moving = Image.open(tmp_path / "samples" / "step-0000010.gif")
    assert moving.n_frames == 30 and moving.size == (208, 3 * (12 + 14))
    sheet = np.asarray(Image.open(tmp_path / "samples" / "step-0000010.png"))
    assert sheet.shape == (3 * (12 + 14), 12 * 208, 3)
    assert (sheet[:12, :104] == 1).all(), "pixels are averaged, not left out"
    brightness = sheet[6, 204::208, 0] / 8
    assert np.array_equal(brightness, np.linspace(0, 29, 12).round()), "from the first to the last"
    assert (sheet[12:26] < 128).any(), "the caption"
