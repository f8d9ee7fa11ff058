"""Training of the probe: the small convolutional network that evaluates frames for the `world.*`
metrics.

For one 32x32 gray frame it predicts the digit, its position (centre of the 16x16 sprite, in px),
the presence of exactly one digit, and which tiles of the ground are bright. Its 96 penultimate
features span the space in which generated and real frames are compared (Frechet distance,
precision, recall). It is trained on real clips only and shares no weights with a generator; it is
not one of the compared methods, so it is a LightningModule but not a `Stage`.

Loss per frame, with presence y in {0, 1}, digit c, centre p (px), bright tiles b in {0, 1}:

    L = BCE(presence, y) + y * [ CE(class, c) + position_weight * |p_hat - p|_smooth
                                 + ground_weight * BCE(ground, b) ]

Frames with y = 0 are made from the batch itself: noise, blank, two digits overlaid, one digit with
its tiles permuted.

The ground is learnt from undistorted frames alone, so that a blurred one is read as unlike either
level.

Arrays: videos uint8 [N, T, 32, 32, 1]; frames float [M, 1, 32, 32] in [0, 1]; state [N, T, 4] =
(x, y, vx, vy) of the sprite's centre, px and px/frame.
"""

import json
import logging
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from datamodules.atomic import write_bytes, write_text
from experiments.worlds.digits.probe_network import SIDE, ProbeNetwork, centred
from lightning_modules.networks.encoders.autoencoders import PatchTransform
from lightning_modules.ranges import NonNegative, Positive, PositiveInt, Seed, UnitInterval

log = logging.getLogger(__name__)


def not_a_digit(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Negative examples, one per frame: noise, blank, two digits overlaid, tiles permuted."""
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
            (frames + (noise - 0.5) * (1.2 + strength)).clamp(0, 1),
            strength * 0.15 * noise,
            torch.maximum(frames, other),
            0.5 * (frames + other),
            tiles,
        ]
    )
    return kinds[torch.randint(len(kinds), (count,), generator=generator), torch.arange(count)]


def handwriting(frames: Tensor, centre: Tensor, generator: torch.Generator) -> Tensor:
    """Handwriting augmentation: slight rotation, scale and shear about the sprite's centre, which
    keep its position.
    """
    count = len(frames)
    bend = torch.empty(count, 2, 2).uniform_(-0.15, 0.15, generator=generator)
    matrix = torch.eye(2) + bend
    centre = centre * 2 / SIDE - 1
    shift = centre - torch.einsum("mij,mj->mi", matrix, centre)
    grid = F.affine_grid(
        torch.cat([matrix, shift[:, :, None]], 2), list(frames.shape), align_corners=False
    )
    return F.grid_sample(frames, grid, align_corners=False, padding_mode="zeros")


def worn(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Mild degradations as of an imperfect generator: grain, blur or low contrast.

    Without these the probe would reject digits with the slightest grain, since real backgrounds
    are exactly black. Strong grain remains a negative example (`not_a_digit`).
    """
    count = len(frames)

    def some(share: float, low: float, high: float) -> Tensor:
        amount = torch.empty(count, 1, 1, 1).uniform_(low, high, generator=generator)
        return amount * (torch.rand(count, 1, 1, 1, generator=generator) < share)

    soft = some(0.3, 0.0, 1.0)
    frames = frames + soft * (F.avg_pool2d(frames, 3, 1, 1) - frames)
    frames = frames * (1 - some(0.3, 0.0, 0.4))
    fine = torch.randn(frames.shape, generator=generator)
    coarse = torch.randn(count, 1, SIDE // 2, SIDE // 2, generator=generator)
    coarse = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    return (frames + some(0.3, 0.0, 0.1) * fine + some(0.3, 0.0, 0.15) * coarse).clamp(0, 1)


class WorldProbe(lightning.LightningModule):
    """Trains a `ProbeNetwork` on rendered clips and hands it off only if it is accurate enough on
    held-out handwriting.

    Args:
        steps: length of the learning-rate schedule (one cycle), equal to the trainer's steps.
        learning_rate: peak of the cycle.
        position_weight: weight of the position error in the loss.
        ground_weight: weight of the ground's cross entropy.
        min_accuracy: gate, share of held-out frames whose digit is classified correctly.
        max_position_error: gate, px, mean distance between read and true centre on held-out frames.
        kept: coefficients that the world's autoencoder keeps; training clips are passed through it,
            as every clip to be evaluated is.
        seed: of the weights and of all augmentation (a function of (seed, step)).
    """

    fields = ("video", "state", "ground")

    def __init__(
        self,
        steps: PositiveInt,
        learning_rate: NonNegative,
        position_weight: NonNegative,
        ground_weight: NonNegative,
        min_accuracy: UnitInterval,
        max_position_error: Positive,
        kept: PositiveInt,
        seed: Seed,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = ProbeNetwork()
        self._codec = PatchTransform([0.0] * kept, 1.0, kept)
        self.gate: dict[str, float] | None = None

    def networks(self) -> dict[str, nn.Module]:
        """Empty: the probe is not a compared method, so its forward passes are not counted."""
        return {}

    def configure_optimizers(self):
        """AdamW under a one-cycle schedule, stepped every batch."""
        rate = self.hparams.learning_rate
        optimizer = torch.optim.AdamW(self.parameters(), lr=rate, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=self.hparams.steps + 1, pct_start=0.2
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def training_step(self, batch: dict) -> Tensor:
        """Every second frame of each clip, one in five replaced by a negative example."""
        generator = torch.Generator().manual_seed(self.hparams.seed * 1_000_003 + self.global_step)
        seen = {**batch, "video": self.through_codec(batch["video"])}
        frames, centre, digit, ground = frames_of(seen)
        chosen = torch.randperm(len(frames), generator=generator)[: max(2, len(frames) // 2)]
        frames, centre, digit, ground = (x[chosen] for x in (frames, centre, digit, ground))
        part, half = len(frames) // 5, len(frames) // 2
        real = torch.ones(len(frames))
        real[:part] = 0
        bent = frames.clone()
        bent[:half] = handwriting(frames[:half], centre[:half], generator)
        jitter = torch.empty_like(centre[:half]).uniform_(-1.5, 1.5, generator=generator)
        second = torch.rand(half, generator=generator) < 0.5
        moved = centred(bent[:half], centre[:half] + jitter)
        bent[:half] = torch.where(second[:, None, None, None], moved, bent[:half])
        centre[:half] = torch.where(second[:, None], SIDE / 2 - jitter, centre[:half])
        bent[part:half] = worn(bent[part:half], generator)
        bent[:part] = not_a_digit(bent[:part], generator)
        _, logits, place, presence, bright = self.network(bent)
        loss_presence = F.binary_cross_entropy_with_logits(presence, real)
        loss_digit = F.cross_entropy(logits[part:], digit[part:], label_smoothing=0.05)
        loss_centre = F.smooth_l1_loss(place[part:], centre[part:])
        loss_ground = F.binary_cross_entropy_with_logits(bright[half:], ground[half:])
        self.log("train/ground", loss_ground)
        self.log("train/presence", loss_presence)
        self.log("train/digit", loss_digit)
        self.log("train/centre", loss_centre)
        loss = loss_presence + loss_digit + self.hparams.position_weight * loss_centre
        loss = loss + self.hparams.ground_weight * loss_ground
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def through_codec(self, video: Tensor) -> Tensor:
        """Reconstruction by the world's autoencoder of uint8 [B, T, 32, 32, 1]."""
        return self._codec.decode(self._codec.encode(video))

    def measure(self, samples: Iterable[dict]) -> dict[str, float]:
        """Measure the gate on held-out clips (digit images never trained on).

        Args:
            samples: stored clips {video uint8 [T, 32, 32, 1], state [T, 4], info}, as a shard
                reader yields them.

        Returns:
            accuracy (share of frames whose digit is read rightly), position_error (px, mean),
            presence (share of frames seen as a digit), ground (share of tiles read rightly),
            frames.
        """
        samples = list(samples)
        if not samples:
            raise ValueError("the probe cannot be measured on an empty held-out set: curate one")
        videos = np.stack([np.asarray(sample["video"]) for sample in samples])
        states = np.stack([np.asarray(sample["state"]) for sample in samples])
        bright = np.stack([np.asarray(sample["ground"]) for sample in samples]) > 0.5
        digits = np.array([int(sample["info"]["attributes"]["digit"]) for sample in samples])
        seen = self.through_codec(torch.from_numpy(videos)).numpy()
        readings = self.network.read(seen)
        error = np.linalg.norm(readings.position - states[..., :2], axis=-1)
        self.gate = {
            "accuracy": float((readings.classes.argmax(-1) == digits[:, None]).mean()),
            "position_error": float(error.mean()),
            "presence": float((readings.presence > 0.5).mean()),
            "ground": float(((readings.ground > 0.5) == bright).mean()),
            "frames": float(error.size),
        }
        log.info("probe on held-out handwriting: %s", self.gate)
        return self.gate

    def hand_off(self, folder: Path) -> None:
        """Write folder/probe/{weights.safetensors, meta.json}, each atomically.

        Raises:
            ValueError: the probe misses its gate, or was never measured on held-out clips.
        """
        if self.gate is None:
            raise ValueError(
                "the probe was not measured: give its recipe a need `held_out` (unseen handwriting)"
            )
        accuracy, error = self.gate["accuracy"], self.gate["position_error"]
        if accuracy < self.hparams.min_accuracy or error > self.hparams.max_position_error:
            raise ValueError(
                f"the probe misses its gate on held-out handwriting: accuracy {accuracy:.4f} (at "
                f"least {self.hparams.min_accuracy}), position error {error:.3f} px (at most "
                f"{self.hparams.max_position_error}); train longer (`steps`) before scoring with it"
            )
        target = folder / "probe"
        weights = save({k: v.contiguous() for k, v in self.network.state_dict().items()})
        meta = {
            "width": self.network.width,
            "sha256": sha256(weights).hexdigest(),
            "gate": self.gate,
            "settings": dict(self.hparams),
        }
        write_bytes(target / "weights.safetensors", weights)
        write_text(target / "meta.json", json.dumps(meta, indent=2, sort_keys=True))


def frames_of(batch: dict) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch of clips as single frames.

    Returns:
        frames [B*T, 1, 32, 32] in [0, 1], centre [B*T, 2] px, digit int64 [B*T], bright tiles of
        the ground [B*T, 4, 4].
    """
    video = torch.as_tensor(batch["video"])
    frames = video.reshape(-1, 1, SIDE, SIDE).float() / 255
    centre = torch.as_tensor(batch["state"])[..., :2].reshape(-1, 2).float()
    digits = [int(info["attributes"]["digit"]) for info in batch["info"]]
    digit = torch.tensor(digits).repeat_interleave(video.shape[1])
    return frames, centre, digit, torch.as_tensor(batch["ground"]).flatten(0, 1).float()
