"""Wan's causal video VAE; protocol `encoders.Autoencoder`.

Sources: Wan (2025), arXiv 2503.20314, and its diffusers folder (vae/).
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.networks.encoders.autoencoders import to_unit, to_video
from lightning_modules.networks.fingerprint import digest_of_weights
from lightning_modules.networks.pipeline_folder import load_part, locate, read_config, weight_files


def wan_vae_dtype(device: str | torch.device) -> torch.dtype:
    """The dtype that Wan's VAE decodes in: bfloat16 on CUDA, as in published code, else float32.

    A rule, and no setting of a recipe: pixels depend on the device in any case. Shard sets are
    encoded in the dtype that their recipe says, and conditioning images in float32.
    """
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32


class WanVAE:
    """Wan's causal video VAE: 4 frames of 8 x 8 pixels per latent (the first frame alone).

    z = (mode(video) - latents_mean) / latents_std, with the vectors of the folder's config.

    Args:
        folder: a pipeline with vae/, by path or hub id.
        device: where it runs.
        dtype: of the weights; None: `wan_vae_dtype` of the device.
        compile: use the fused form (`fused_vae.py`); on CUDA only.

    Raises:
        FileNotFoundError: if there is no VAE, or only a part of one.
        ValueError: if its config does not say how latents are normalised, or a file is damaged.
    """

    pixel_channels = 3

    def __init__(
        self,
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        compile: bool = False,
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
        self._device, self._dtype = device, dtype or wan_vae_dtype(device)
        self._fused = compile and torch.device(device).type == "cuda"
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

        from lightning_modules.networks.encoders.fused_vae import fuse

        vae = load_part(AutoencoderKLWan, self._part, torch_dtype=self._dtype)
        if self._fused:
            fuse(vae)
        return vae.to(self._device).eval().requires_grad_(False)

    def _per_channel(self, numbers: Sequence[float]) -> Tensor:
        return torch.tensor(numbers, device=self._device).view(1, -1, 1, 1, 1)

    def load(self) -> None:
        """Read the weights now, not at first use.

        Diffusers changes torch's default dtype, which is the process's, while it reads.
        """
        _ = self._vae

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
        pixels = to_unit(video.to(self._device)).permute(0, 4, 1, 2, 3).to(self._dtype)
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
