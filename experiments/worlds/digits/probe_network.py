"""The probe's network: position and class of a digit, whether there is exactly one, and the ground.

Two passes: the class read from the original frame is less accurate near the border, so `read`
evaluates a second time, with the sprite moved to the centre of a black frame. The centred features
are translation invariant and measure identity; features of the whole frame are not, and measure
realism.

Arrays: videos uint8 [N, T, 32, 32, 1]; frames float [M, 1, 32, 32] in [0, 1]; positions are those
of the sprite's centre in px, x to the right, y down.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from datamodules.json_files import read_object

SIDE = 32  # px, of a frame
SPRITE = 16  # px, of the digit's square
MARGIN = (SIDE - SPRITE) // 2  # px, around a sprite in the middle
CLASSES = 10
_META = ("width", "sha256", "gate")
GROUND = (4, 4)  # tiles of the ground in a frame (`Ground.seen` of 8 px tiles)


@dataclass
class Readings:
    """Outputs of the probe for N clips of T frames; all numpy, float32."""

    position: np.ndarray  # [N, T, 2] centre of the sprite, px
    presence: np.ndarray  # [N, T] probability of exactly one digit
    classes: np.ndarray  # [N, T, 10] class probabilities, second pass
    ground: np.ndarray  # [N, T, 4, 4] probability that each tile of the ground is bright
    features: np.ndarray  # [N, T, 96] of the original frame
    identity: np.ndarray  # [N, T, 96] of the centred sprite


class ProbeNetwork(nn.Module):
    """Four convolutions, one hidden layer of `width` features, four linear heads."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.width = width
        self.trunk = nn.Sequential(
            *_convolution(1, 16, 5, 2),
            *_convolution(16, 32, 3, 2),
            *_convolution(32, 48, 3, 1),
            *_convolution(48, 64, 3, 2),
            nn.Flatten(),
            nn.Linear(64 * 16, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
        )
        self.digit = nn.Linear(width, CLASSES)
        self.place = nn.Linear(width, 2)
        self.presence = nn.Linear(width, 1)
        self.ground = nn.Linear(width, GROUND[0] * GROUND[1])

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Frames [M, 1, 32, 32] -> features [M, 96], class logits [M, 10], centre [M, 2] px,
        presence logit [M], logits of a bright ground [M, 4, 4].
        """
        features = self.trunk(frames)
        centre = SIDE / 2 + MARGIN * self.place(features)
        presence = self.presence(features).squeeze(1)
        ground = self.ground(features).unflatten(1, GROUND)
        return features, self.digit(features), centre, presence, ground

    @torch.inference_mode()
    def read(self, videos: np.ndarray, batch: int = 1024) -> Readings:
        """Evaluate every frame in two passes; videos uint8 [N, T, 32, 32, 1]. Deterministic; puts
        the network in eval mode.

        Raises:
            ValueError: the videos are not uint8 or not 32x32 gray.
        """
        if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[2:] != (SIDE, SIDE, 1):
            raise ValueError(
                f"the probe reads uint8 videos [N, T, {SIDE}, {SIDE}, 1]; got {videos.dtype} "
                f"{list(videos.shape)}"
            )
        self.eval()
        clips, length = videos.shape[:2]
        columns: list[tuple[Tensor, ...]] = []
        for some in torch.from_numpy(videos).reshape(-1, 1, SIDE, SIDE).split(batch):
            frames = some.float() / 255
            features, _, centre, presence, ground = self(frames)
            identity, digit, again, *_ = self(centred(frames, centre))
            centre = centre + again - SIDE / 2  # offset from the centre found in the second pass
            read = centre, presence.sigmoid(), digit.softmax(1), ground.sigmoid()
            columns.append((*read, features, identity))
        joined = [torch.cat(column).numpy() for column in zip(*columns, strict=True)]
        return Readings(*(values.reshape(clips, length, *values.shape[1:]) for values in joined))

    @classmethod
    def load(cls, folder: Path) -> "ProbeNetwork":
        """The network that `WorldProbe.hand_off` left in `folder` (weights.safetensors, meta.json).

        Raises:
            FileNotFoundError, ValueError: as `read_probe_meta` raises them.
        """
        weights = folder / "weights.safetensors"
        if not weights.is_file():
            raise FileNotFoundError(f"{weights} is missing; fit `probe` first")
        network = cls(width=read_probe_meta(folder)["width"])
        network.load_state_dict(load_file(weights))
        return network.eval()


def read_probe_meta(folder: Path) -> dict[str, Any]:
    """What `WorldProbe.hand_off` noted beside the weights: width, hash of the weights and gate.

    Raises:
        FileNotFoundError: there is no probe in the folder.
        ValueError: its meta.json is damaged.
    """
    meta = folder / "meta.json"
    if not meta.is_file():
        raise FileNotFoundError(f"{meta} is missing; fit `probe` first")
    return read_object(meta, f"remove {folder.parent} to fit the probe again", _META)


def centred(frames: Tensor, centre: Tensor) -> Tensor:
    """The sprite moved to the middle of a black frame (bilinear, sub-pixel): [M, 1, 32, 32], centre
    [M, 2] px.
    """
    steps = torch.arange(SIDE, dtype=frames.dtype)
    inside = (steps >= MARGIN) & (steps < MARGIN + SPRITE)
    source = (
        centre[:, None, :] - SIDE / 2 + steps[None, :, None]
    )  # [M, 32, 2] where each pixel comes from
    where = (source + 0.5) * 2 / SIDE - 1
    grid = torch.stack(
        [
            where[:, None, :, 0].expand(-1, SIDE, -1),
            where[:, :, None, 1].expand(-1, -1, SIDE),
        ],
        dim=-1,
    )
    moved = F.grid_sample(frames, grid, align_corners=False, padding_mode="zeros")
    return moved * (inside[:, None] & inside[None, :])


def _convolution(inputs: int, outputs: int, size: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()
