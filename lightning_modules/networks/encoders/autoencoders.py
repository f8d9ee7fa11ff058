"""The tiny world's autoencoder, and pixels as bytes; protocol `encoders.Autoencoder`."""

import json
from collections.abc import Iterable, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.networks.fingerprint import digest

_OPPONENT = F.normalize(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]]), dim=1)
"""Brightness, red - blue and purple - green: an orthonormal basis of colours, [new, old]."""


def to_unit(video: Tensor) -> Tensor:
    """Uint8 -> float32 in -1 .. 1, of any shape."""
    return video.float() / 127.5 - 1


def _to_bytes(pixels: Tensor) -> Tensor:
    """Refuses pixels that are not finite: as bytes they would be black."""
    if not torch.isfinite(pixels).all():
        raise ValueError(
            "the autoencoder decoded pixels that are not finite: latents far out of range, or"
            " weights that do not fit its dtype"
        )
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_video(pixels: Tensor) -> Tensor:
    """[B, c, T, H, W] in -1 .. 1 -> uint8 [B, T, H, W, c]."""
    return _to_bytes(pixels.float()).permute(0, 2, 3, 4, 1).contiguous()


class PatchTransform:
    """An orthonormal 2-D cosine transform of 8 x 8 pixel patches: the tiny world's autoencoder.

    Stride 8 and 16 channels are those of Wan's VAE, so the network sees the same shapes; nothing is
    trained and, with `kept` = 64, it is lossless.

    Args:
        mean: of each latent channel, before normalisation.
        std: one number for all channels, so that the transform stays a rotation times a scale.
        kept: coefficients kept of a patch's 64, the lowest frequencies: a square number (16, 64),
            or one for each channel of colour.
        pixel_channels: 1 for gray.
        opponent: whether red, green and blue become brightness and two differences of colour
            first, by a rotation.
    """

    spatial_stride = 8
    temporal_stride = 1

    def __init__(
        self,
        mean: Sequence[float],
        std: float,
        kept: int | Sequence[int] = 16,
        pixel_channels: int = 1,
        opponent: bool = False,
    ) -> None:
        if opponent and pixel_channels != 3:
            raise ValueError(f"opponent: needs 3 pixel_channels, got {pixel_channels}")
        self._sides = _sides(kept, pixel_channels, self.spatial_stride)
        self.channels = sum(side * side for side in self._sides)
        if len(mean) != self.channels or std <= 0:
            raise ValueError(
                f"mean/std: {self.channels} means and one positive std, got {mean}, {std}"
            )
        self.pixel_channels = pixel_channels
        self._basis = _cosines(self.spatial_stride)[: max(self._sides)]  # [k, 8]
        self._colours = _OPPONENT if opponent else None
        self._mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self._std = float(std)
        described = [type(self).__name__, list(map(float, mean)), float(std), kept, pixel_channels]
        described += [opponent] * opponent
        self.id = digest(json.dumps(described).encode())

    def encode(self, video: Tensor) -> Tensor:
        """Uint8 [B, T, H, W, c] -> float32 [B, T, kept * c, H/8, W/8].

        Raises:
            ValueError: if a side is no multiple of 8 or the number of channels is another.
        """
        size = self.spatial_stride
        if video.shape[2] % size or video.shape[3] % size or video.shape[4] != self.pixel_channels:
            raise ValueError(
                f"video {tuple(video.shape)} needs sides divisible by {size} and "
                f"{self.pixel_channels} channel(s)"
            )
        pixels = to_unit(video)
        if self._colours is not None:
            pixels = pixels @ self._colours.to(video.device).mT
        patches = pixels.unflatten(3, (-1, size)).unflatten(2, (-1, size))
        basis = self._basis.to(video.device)
        waves = torch.einsum("btyixjc,ui,vj->btcuvyx", patches, basis, basis)
        kept = [waves[:, :, c, :n, :n].flatten(2, 3) for c, n in enumerate(self._sides)]
        latents = torch.cat(kept, 2)
        return (latents - self._mean.to(video.device)) / self._std

    def decode(self, latents: Tensor) -> Tensor:
        """Float32 [B, T, kept * c, h, w] -> uint8 [B, T, 8h, 8w, c]."""
        side = len(self._basis)
        raw = latents.float() * self._std + self._mean.to(latents.device)
        kept = raw.split([n * n for n in self._sides], 2)
        whole = [
            F.pad(waves.unflatten(2, (n, n)), (0, 0, 0, 0, 0, side - n, 0, side - n))
            for waves, n in zip(kept, self._sides, strict=True)
        ]
        basis = self._basis.to(latents.device)
        patches = torch.einsum("btcuvyx,ui,vj->btyixjc", torch.stack(whole, 2), basis, basis)
        pixels = patches.flatten(4, 5).flatten(2, 3)
        if self._colours is not None:
            pixels = pixels @ self._colours.to(latents.device)
        return _to_bytes(pixels)

    def stream(self) -> Self:
        """Itself: frames do not depend on each other."""
        return self

    def load(self) -> None:
        """Nothing: it has no weights."""


def _sides(kept: int | Sequence[int], channels: int, largest: int) -> list[int]:
    """The square roots of the coefficients kept of each channel."""
    each = [kept] * channels if isinstance(kept, int) else list(kept)
    sides = [round(count**0.5) for count in each]
    if len(each) != channels:
        raise ValueError(f"kept: {each} for {channels} channels of colour; give one for each")
    for side, count in zip(sides, each, strict=True):
        if side * side != count or not 1 <= side <= largest:
            raise ValueError(f"kept: {count} is not a square number from 1 to 64; use 16 or 64")
    return sides


def _cosines(size: int) -> Tensor:
    """Orthonormal DCT-II, [frequency, position]."""
    index = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(torch.pi * (index + 0.5) * index[:, None] / size) * (2 / size) ** 0.5
    waves[0] /= 2**0.5
    return waves.float()


def measure_patches(
    videos: Iterable[Tensor],
    kept: int | Sequence[int] = 16,
    pixel_channels: int = 1,
    opponent: bool = False,
) -> tuple[list[float], float]:
    """Mean per channel and shared std that normalise `videos`, uint8 [B, T, H, W, c].

    Returns:
        (mean, std), the arguments of `PatchTransform`.

    Raises:
        ValueError: if the videos are constant or there are none.
    """
    channels = sum(side**2 for side in _sides(kept, pixel_channels, PatchTransform.spatial_stride))
    plain = PatchTransform([0.0] * channels, 1.0, kept, pixel_channels, opponent)
    count, first, second = 0, torch.zeros(channels).double(), torch.zeros(channels).double()
    for video in videos:
        latents = plain.encode(video).double().transpose(0, 2).flatten(1)  # [C, everything else]
        count += latents.shape[1]
        first += latents.sum(1)
        second += latents.square().sum(1)
    mean = first / max(count, 1)
    variance = float((second / max(count, 1) - mean.square()).mean())
    if variance < 1e-12:
        raise ValueError(f"videos: {count} patches without any variation cannot be normalised")
    return mean.tolist(), variance**0.5
