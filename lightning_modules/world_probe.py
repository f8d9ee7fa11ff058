"""The probe: a small convolutional network that reads a frame of the tiny world, the eye of all `world.*` metrics.

It answers, for one 32x32 gray frame: which digit, where (centre of the 16x16 sprite, in pixels), and
whether there is exactly one digit at all. Its 64 penultimate features span the space in which
generated and real frames are compared (Frechet distance, precision, recall). It is trained on real
clips only and shares no weights with a generator; it takes part in no comparison, so it is a
LightningModule but not a `Stage`.

Loss per frame, with presence y in {0, 1}, digit c, centre p (px):

    L = BCE(presence, y) + y * [ CE(class, c) + position_weight * |p_hat - p|_smooth ]

Frames with y = 0 are made from the batch itself: noise, blank, two digits overlaid, one digit with
its tiles permuted.

Two glances: the class read from the frame as it stands is less accurate near the border, so `read`
looks a second time at the sprite moved to the middle of a black frame. Those centred features do
not change with place, which makes them the measure of identity; features of the whole frame do,
which makes them the measure of realism.

Arrays: videos uint8 [N, T, 32, 32, 1]; frames float [M, 1, 32, 32] in [0, 1]; state [N, T, 4] =
(x, y, vx, vy) of the sprite's centre, px and px/frame.
"""

import json
import logging
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SIDE = 32  # px, of a frame
SPRITE = 16  # px, of the digit's square
MARGIN = (SIDE - SPRITE) // 2  # px, around a sprite in the middle
CLASSES = 10

log = logging.getLogger(__name__)


@dataclass
class Readings:
    """What the probe sees in N clips of T frames; all numpy, float32."""

    position: np.ndarray  # [N, T, 2] centre of the sprite, px
    presence: np.ndarray  # [N, T] probability of exactly one digit
    classes: np.ndarray  # [N, T, 10] probabilities, second glance
    features: np.ndarray  # [N, T, 64] of the frame as it stands
    identity: np.ndarray  # [N, T, 64] of the centred sprite


class ProbeNetwork(nn.Module):
    """Four convolutions, one hidden layer of `width` features, three linear heads."""

    def __init__(self, width: int = 64) -> None:
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

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Frames [M, 1, 32, 32] -> features [M, 64], class logits [M, 10], centre [M, 2] px, presence logit [M]."""
        features = self.trunk(frames)
        centre = SIDE / 2 + MARGIN * self.place(features)
        return features, self.digit(features), centre, self.presence(features).squeeze(1)

    @torch.inference_mode()
    def read(self, videos: np.ndarray, batch: int = 1024) -> Readings:
        """Look at every frame twice; videos uint8 [N, T, 32, 32, 1]. Deterministic; puts the network in eval mode.

        Raises:
            ValueError: the videos are not uint8 or not 32x32 gray.
        """
        if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[2:] != (SIDE, SIDE, 1):
            raise ValueError(
                f"the probe reads uint8 videos [N, T, {SIDE}, {SIDE}, 1]; got {videos.dtype} {list(videos.shape)}"
            )
        self.eval()
        clips, length = videos.shape[:2]
        columns: list[tuple[Tensor, ...]] = []
        for some in torch.from_numpy(videos).reshape(-1, 1, SIDE, SIDE).split(batch):
            frames = some.float() / 255
            features, _, centre, presence = self(frames)
            identity, digit, again, _ = self(centred(frames, centre))
            centre = centre + again - SIDE / 2  # what the second glance finds off the middle
            columns.append((centre, presence.sigmoid(), digit.softmax(1), features, identity))
        joined = [torch.cat(column).numpy() for column in zip(*columns, strict=True)]
        return Readings(*(values.reshape(clips, length, *values.shape[1:]) for values in joined))

    @classmethod
    def load(cls, folder: Path) -> "ProbeNetwork":
        """The network that `WorldProbe.hand_off` left in `folder` (weights.safetensors, meta.json).

        Raises:
            FileNotFoundError: there is no probe in the folder.
        """
        weights, meta = folder / "weights.safetensors", folder / "meta.json"
        if not weights.is_file() or not meta.is_file():
            raise FileNotFoundError(
                f"{folder} holds no probe (weights.safetensors, meta.json); fit `probe` first"
            )
        network = cls(width=json.loads(meta.read_text())["width"])
        network.load_state_dict(load_file(weights))
        return network.eval()


def centred(frames: Tensor, centre: Tensor) -> Tensor:
    """The sprite moved to the middle of a black frame (bilinear, sub-pixel): [M, 1, 32, 32], centre [M, 2] px."""
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


def not_a_digit(frames: Tensor, generator: torch.Generator) -> Tensor:
    """As many frames without a readable digit as given: noise, blank, two digits overlaid, tiles permuted."""
    count = len(frames)
    noise = torch.rand(frames.shape, generator=generator)
    strength = torch.rand(count, 1, 1, 1, generator=generator)
    other = frames[torch.randperm(count, generator=generator)]
    tiles = frames.unfold(2, 8, 8).unfold(3, 8, 8).reshape(count, 1, 16, 8, 8)
    tiles = tiles[:, :, torch.randperm(16, generator=generator)]
    tiles = tiles.reshape(count, 1, 4, 4, 8, 8).transpose(3, 4).reshape(frames.shape)
    kinds = torch.stack(
        [
            noise,
            (frames + (noise - 0.5) * (0.8 + strength)).clamp(0, 1),
            strength * 0.15 * noise,
            torch.maximum(frames, other),
            0.5 * (frames + other),
            tiles,
        ]
    )
    return kinds[torch.randint(len(kinds), (count,), generator=generator), torch.arange(count)]


def handwriting(frames: Tensor, centre: Tensor, generator: torch.Generator) -> Tensor:
    """Slightly rotated, scaled and sheared about the sprite's centre, so its place is kept and its writer is not."""
    count = len(frames)
    bend = torch.empty(count, 2, 2).uniform_(-0.15, 0.15, generator=generator)
    matrix = torch.eye(2) + bend
    centre = centre * 2 / SIDE - 1
    shift = centre - torch.einsum("mij,mj->mi", matrix, centre)
    grid = F.affine_grid(
        torch.cat([matrix, shift[:, :, None]], 2), list(frames.shape), align_corners=False
    )
    return F.grid_sample(frames, grid, align_corners=False, padding_mode="zeros")


class WorldProbe(lightning.LightningModule):
    """Trains a `ProbeNetwork` on rendered clips and hands it off only if it reads held-out handwriting well enough.

    Args:
        steps: length of the learning-rate schedule (one cycle), equal to the trainer's steps.
        learning_rate: peak of the cycle.
        position_weight: weight of the position error in the loss.
        min_accuracy: gate, share of held-out frames whose digit is read rightly.
        max_position_error: gate, px, mean distance between read and true centre on held-out frames.
        seed: of the weights and of all augmentation (a function of (seed, step)).
    """

    def __init__(
        self,
        steps: int,
        learning_rate: float,
        position_weight: float,
        min_accuracy: float,
        max_position_error: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = ProbeNetwork()
        self._seen: list[tuple[float, float, float, int]] = []
        self.gate: dict[str, float] | None = None

    def configure_optimizers(self):
        """AdamW under a one-cycle schedule, stepped every batch."""
        rate = self.hparams.learning_rate
        optimizer = torch.optim.AdamW(self.parameters(), lr=rate, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=self.hparams.steps + 1, pct_start=0.2
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def training_step(self, batch: dict) -> Tensor:
        """One frame in two of every clip, one in five of them replaced by something that is no digit."""
        generator = torch.Generator().manual_seed(self.hparams.seed * 1_000_003 + self.global_step)
        frames, centre, digit = frames_of(batch)
        chosen = torch.randperm(len(frames), generator=generator)[: max(2, len(frames) // 2)]
        frames, centre, digit = frames[chosen], centre[chosen], digit[chosen]
        part = len(frames) // 5
        real = torch.ones(len(frames))
        real[:part] = 0
        bent = frames.clone()
        bent[: len(frames) * 3 // 4] = handwriting(
            frames[: len(frames) * 3 // 4], centre[: len(frames) * 3 // 4], generator
        )
        jitter = torch.empty_like(centre).uniform_(-1.5, 1.5, generator=generator)
        second = torch.rand(len(frames), generator=generator) < 0.3
        middle = torch.full_like(centre, SIDE / 2) - jitter
        bent = torch.where(second[:, None, None, None], centred(bent, centre + jitter), bent)
        centre = torch.where(second[:, None], middle, centre)
        bent[:part] = not_a_digit(bent[:part], generator)
        _, logits, place, presence = self.network(bent)
        loss_presence = F.binary_cross_entropy_with_logits(presence, real)
        loss_digit = F.cross_entropy(logits[part:], digit[part:], label_smoothing=0.05)
        loss_centre = F.smooth_l1_loss(place[part:], centre[part:])
        self.log("train/presence", loss_presence)
        self.log("train/digit", loss_digit)
        self.log("train/centre", loss_centre)
        loss = loss_presence + loss_digit + self.hparams.position_weight * loss_centre
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget earlier measurements."""
        self._seen = []

    def validation_step(self, batch: dict) -> None:
        """Measures the gate on held-out clips (digit images never trained on)."""
        readings = self.network.read(_uint8(batch["video"]))
        _, centre, digit = frames_of(batch)
        right = readings.classes.reshape(len(digit), -1).argmax(1) == digit.numpy()
        error = np.linalg.norm(readings.position.reshape(-1, 2) - centre.numpy(), axis=1)
        seen = readings.presence.reshape(-1) > 0.5
        self._seen.append((right.sum(), error.sum(), seen.sum(), len(digit)))

    def on_validation_epoch_end(self) -> None:
        """Sum up the gate: accuracy, position error (px), presence, over frames."""
        right, error, seen, count = (float(sum(column)) for column in zip(*self._seen, strict=True))
        self.gate = {
            "accuracy": right / count,
            "position_error": error / count,
            "presence": seen / count,
            "frames": count,
        }
        for name, value in self.gate.items():
            self.log(f"gate/{name}", value)
        log.info("probe on held-out handwriting: %s", self.gate)

    def hand_off(self, folder: Path) -> None:
        """Write folder/probe/{weights.safetensors, meta.json}, each atomically.

        Raises:
            ValueError: the probe misses its gate, or was never measured on held-out clips.
        """
        if self.gate is None:
            raise ValueError(
                "the probe was not measured: validate it on held-out clips before handing it off"
            )
        accuracy, error = self.gate["accuracy"], self.gate["position_error"]
        if accuracy < self.hparams.min_accuracy or error > self.hparams.max_position_error:
            raise ValueError(
                f"the probe misses its gate on held-out handwriting: accuracy {accuracy:.4f} (at least "
                f"{self.hparams.min_accuracy} wanted), position error {error:.3f} px (at most "
                f"{self.hparams.max_position_error}); train longer (`steps`) before scoring anything with it"
            )
        target = folder / "probe"
        target.mkdir(parents=True, exist_ok=True)
        partial = target / "weights.safetensors.tmp"
        save_file({k: v.contiguous() for k, v in self.network.state_dict().items()}, partial)
        meta = {
            "width": self.network.width,
            "sha256": sha256(partial.read_bytes()).hexdigest(),
            "gate": self.gate,
            "settings": dict(self.hparams),
        }
        os.replace(partial, target / "weights.safetensors")
        partial = target / "meta.json.tmp"
        partial.write_text(json.dumps(meta, indent=2, sort_keys=True))
        os.replace(partial, target / "meta.json")


def frames_of(batch: dict) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of clips as single frames: [B*T, 1, 32, 32] in [0, 1], centre [B*T, 2] px, digit int64 [B*T]."""
    video = torch.as_tensor(batch["video"])
    length = video.shape[1]
    frames = video.reshape(-1, 1, SIDE, SIDE).float() / 255
    centre = torch.as_tensor(batch["state"])[..., :2].reshape(-1, 2).float()
    digits = [int(info["attributes"]["digit"]) for info in batch["info"]]
    digit = torch.tensor(digits).repeat_interleave(length)
    return frames, centre, digit


def _uint8(video: Tensor) -> np.ndarray:
    return torch.as_tensor(video).cpu().numpy().astype(np.uint8)


def _convolution(inputs: int, outputs: int, size: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()
