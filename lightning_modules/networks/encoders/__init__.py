"""Autoencoders (pixels to latents) and text encoders (prompts to embeddings).

Two implementations of each protocol. All are frozen, offline, deterministic and loaded on first
use; `id` is a hash of their content, stored with shards, so that latents and text of different
encoders are never mixed.

Videos are uint8 [B, T, H, W, channels]; latents float32 [B, F, C, h, w], normalised by the
autoencoder and nowhere else; text float32 [B, L, D] with padded positions zeroed.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from lightning_modules.networks.encoders.autoencoders import PatchTransform, measure_patches
from lightning_modules.networks.encoders.text_encoders import WAN_NEGATIVE_PROMPT, TinyText, WanText
from lightning_modules.networks.encoders.wan_vae import WanVAE, wan_vae_dtype

__all__ = [
    "WAN_NEGATIVE_PROMPT",
    "Autoencoder",
    "Decoder",
    "PatchTransform",
    "TextEncoder",
    "TinyText",
    "WanText",
    "WanVAE",
    "measure_patches",
    "wan_vae_dtype",
]


class Decoder(Protocol):
    """Decodes a clip piece by piece: together the frames of a whole `Autoencoder.decode`."""

    def decode(self, latents: Tensor) -> Tensor:
        """The next float32 [B, n, C, h, w] -> uint8 [B, T, H, W, c]."""
        ...


class Autoencoder(Protocol):
    """Videos to latents and back."""

    channels: int
    pixel_channels: int
    spatial_stride: int
    temporal_stride: int
    id: str

    def encode(self, video: Tensor) -> Tensor:
        """Uint8 [B, T, H, W, c] -> normalised float32 [B, F, C, h, w]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return the inverse of `encode`, rounded and clamped to uint8."""
        ...

    def stream(self) -> Decoder:
        """A decoder for one clip of any length."""
        ...

    def load(self) -> None:
        """Read the weights now, so that another thread may use them first."""
        ...


class TextEncoder(Protocol):
    """Prompts to embeddings."""

    length: int
    dim: int
    id: str

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> float32 [B, length, dim], zero where padded."""
        ...

    def beyond(self, prompts: Sequence[str]) -> list[int]:
        """Numbers of tokens of those prompts that `encode` cuts."""
        ...
