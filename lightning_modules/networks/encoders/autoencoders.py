"""Autoencoders: the tiny world's patch transform and Wan's VAE; protocol `encoders.Autoencoder`.

Sources: Wan (2025), arXiv 2503.20314, and its diffusers folder (vae/).
"""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.networks.fingerprint import digest, digest_of_weights
from lightning_modules.networks.pipeline_folder import load_part, locate, read_config, weight_files

_OPPONENT = F.normalize(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]]), dim=1)
"""Brightness, red - blue and purple - green: an orthonormal basis of colours, [new, old]."""
WAN_VAE_DTYPE = torch.float32  # of the weights; what the bench times too


def _to_unit(video: Tensor) -> Tensor:
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
        pixels = _to_unit(video)
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


class WanVAE:
    """Wan's causal video VAE: 4 frames of 8 x 8 pixels per latent (the first frame alone).

    z = (mode(video) - latents_mean) / latents_std, with the vectors of the folder's config.

    Args:
        folder: a pipeline with vae/, by path or hub id.
        device: where it runs.
        dtype: of the weights.

    Raises:
        FileNotFoundError: if there is no VAE, or only a part of one.
        ValueError: if its config does not say how latents are normalised, or a file is damaged.
    """

    pixel_channels = 3

    def __init__(
        self,
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = WAN_VAE_DTYPE,
    ) -> None:
        self._part = locate(folder, "vae") / "vae"
        config = read_config(self._part)
        weight_files(self._part)
        for key in ("latents_mean", "latents_std"):
            if len(config.get(key) or ()) != config["z_dim"]:
                raise ValueError(
                    f"{self._part / 'config.json'}: {key} must list {config['z_dim']} numbers; see"
                    " Wan 2.1's"
                )
        self._device, self._dtype = device, dtype
        self.source = str(folder)
        self.channels = config["z_dim"]
        self.temporal_stride = 2 ** sum(config["temperal_downsample"])  # diffusers' spelling
        self.spatial_stride = 2 ** (len(config["dim_mult"]) - 1)
        self.mean: list[float] = config["latents_mean"]
        self.std: list[float] = config["latents_std"]

    @cached_property
    def id(self) -> str:
        """Hash of the config and weights."""
        return digest_of_weights(self._part)

    @cached_property
    def _vae(self) -> nn.Module:
        from diffusers import AutoencoderKLWan

        vae = load_part(AutoencoderKLWan, self._part, torch_dtype=self._dtype)
        return vae.to(self._device).eval().requires_grad_(False)

    def _per_channel(self, numbers: Sequence[float]) -> Tensor:
        return torch.tensor(numbers, device=self._device).view(1, -1, 1, 1, 1)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Uint8 [B, 1 + 4k, H, W, 3] -> float32 [B, 1 + k, C, H/8, W/8], where the video was.

        Raises:
            ValueError: if the frames are not 1 + a multiple of the stride, or a side no multiple.
        """
        _, frames, height, width, colours = video.shape
        stride, side = self.temporal_stride, self.spatial_stride
        if frames % stride != 1 % stride or height % side or width % side or colours != 3:
            raise ValueError(
                f"video {tuple(video.shape)} needs 1 + {stride}k frames, sides divisible by {side} "
                "and 3 colours"
            )
        pixels = _to_unit(video.to(self._device)).permute(0, 4, 1, 2, 3).to(self._dtype)
        raw = self._vae.encode(pixels).latent_dist.mode().float()
        latents = (raw - self._per_channel(self.mean)) / self._per_channel(self.std)
        return latents.transpose(1, 2).contiguous().to(video.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Float32 [B, F, C, h, w] -> uint8 [B, 1 + 4(F - 1), 8h, 8w, 3], where the latents were."""
        pixels = self._vae.decode(self._raw(latents), return_dict=False)[0]
        return to_video(pixels).to(latents.device)

    def stream(self) -> "WanDecoder":
        """A decoder with a feature cache of its own; any number may be in use."""
        return WanDecoder(self._vae, self._raw)

    def _raw(self, latents: Tensor) -> Tensor:
        """What the VAE decodes, [B, C, F, h, w]."""
        normalised = latents.to(self._device).float().transpose(1, 2)
        raw = normalised * self._per_channel(self.std) + self._per_channel(self.mean)
        return raw.to(self._dtype)


class WanDecoder:
    """Wan's decoder on a clip that comes piece by piece.

    The VAE is causal in time and decodes one latent frame after the other. What it remembers are
    the last two frames of the input of every causal convolution: the same for any length.
    `AutoencoderKLWan.decode` forgets them at each call, so pieces decoded by it are other frames.

    Args:
        vae: a diffusers `AutoencoderKLWan`.
        raw: from normalised latents to what it decodes.
    """

    def __init__(self, vae: Any, raw: Callable[[Tensor], Tensor]) -> None:
        self._vae, self._raw = vae, raw
        self._features: list[Any] | None = None

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The next float32 [B, n, C, h, w] -> uint8 [B, 4n, 8h, 8w, 3]; the first has 3 fewer."""
        x = self._vae.post_quant_conv(self._raw(latents))
        pieces = [self._next(x[:, :, frame : frame + 1]) for frame in range(x.shape[2])]
        return to_video(torch.cat(pieces, 2).clamp(-1, 1)).to(latents.device)

    def _next(self, x: Tensor) -> Tensor:
        first = self._features is None
        if first:
            self._vae.clear_cache()
            self._features = list(self._vae._feat_map)
        more = {"first_chunk": True} if first else {}
        return self._vae.decoder(x, feat_cache=self._features, feat_idx=[0], **more)
