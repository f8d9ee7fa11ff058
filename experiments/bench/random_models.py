"""Random networks, encoders and prompts of a scale's sizes, on the device, for timing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from experiments.bench.count import Work, kept, work
from experiments.bench.sizes import BYTES, NetworkSize
from experiments.checkpoints.networks import bf16, new_network
from lightning_modules.diffusion.visibility import partition
from lightning_modules.networks.encoders.wan_vae import wan_vae_dtype
from lightning_modules.networks.tally import Call
from lightning_modules.ranges import Checkpointing

_PATCH = 2  # pixels of a latent frame along each side of a token


@dataclass(frozen=True)
class Subject:
    """The measured system: a scale's sizes and the device.

    Args:
        tree: the scale, resolved.
        device: where it runs.
    """

    tree: Mapping[str, Any]
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        """``[F, C, H, W]`` of a clip's latents."""
        return tuple(self.tree["clip_shape"])

    @property
    def blocks(self) -> tuple[int, ...]:
        return partition(self.tree["blocks"], self.shape[0])

    @property
    def tokens(self) -> int:
        """Tokens per frame."""
        return (self.shape[2] // _PATCH) * (self.shape[3] // _PATCH)

    @property
    def text_tokens(self) -> int:
        return self.tree["bench"]["text_tokens"]

    @property
    def half(self) -> bool:
        return self.tree["precision"].startswith("bf16")

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of matrix products."""
        return torch.bfloat16 if self.half else torch.float32

    @property
    def value_bytes(self) -> int:
        return BYTES[self.tree["precision"]]

    def work(self, call: Call, size: NetworkSize | None = None, clips: int = 1) -> Work:
        """Work of a call recorded for one clip, in a network (the student's), for many clips."""
        return work(
            size or NetworkSize.of(self.tree["network"]),
            replace(call, batch=clips * call.batch),
            self.tokens,
            self.text_tokens,
            self.value_bytes,
        )

    def recomputed(
        self, call: Call, size: NetworkSize, clips: int, checkpointing: Checkpointing
    ) -> Work:
        """Of a call with a backward pass, what is computed again for it."""
        if not (checkpointing and call.backward):
            return Work()
        forward = self.work(call, size, clips)
        if checkpointing == "full":
            return forward
        attention = kept(size, replace(call, batch=clips * call.batch), self.tokens)
        return Work(forward.operations - attention.operations, forward.bytes)

    def autocast(self) -> torch.autocast:
        """Autocast as in Lightning's precision plugin."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    def prompt(self, batch: int = 1) -> Tensor:
        """Random embeddings ``[B, L, D]``."""
        width = self.tree["network"]["text_dim"]
        return torch.randn(batch, self.text_tokens, width, device=self.device)

    def pixel_frames(self) -> int:
        """Pixel frames of a clip: 1 for the first latent frame, else the temporal stride."""
        stride = 2 ** sum(self._vae_config()["temperal_downsample"])
        return 1 + stride * (self.shape[0] - 1)

    def network(self, numbers: Mapping[str, Any], frozen: bool = True) -> nn.Module:
        """Random weights, initialised on the device; frozen ones rounded as by autocast."""
        with torch.device(self.device):
            network = new_network(numbers)
        network.requires_grad_(not frozen).train(not frozen)
        return bf16(network) if frozen and self.half else network

    @property
    def fuses(self) -> bool:
        """Whether ``sample`` decodes by the fused VAE."""
        return self.device.type == "cuda" and self.tree["launch"].get("compile", False)

    def vae(self, dtype: torch.dtype | None = None, plain: bool = False) -> nn.Module:
        """Wan's VAE at the scale's size; None: in the dtype that ``sample`` decodes with.

        It is fused as there, unless it is to be ``plain``, as for encoding.
        """
        from diffusers import AutoencoderKLWan

        from lightning_modules.networks.encoders.fused_vae import fuse

        with torch.device(self.device):
            vae = AutoencoderKLWan(**self._vae_config())
        vae = vae.to(dtype or wan_vae_dtype(self.device)).eval().requires_grad_(False)
        if self.fuses and not plain:
            fuse(vae)
        return vae

    def text_encoder(self) -> nn.Module:
        """A umT5 at the scale's size."""
        from transformers import UMT5Config, UMT5EncoderModel

        config = UMT5Config(**self.tree["bench"]["text_encoder"])
        with torch.device(self.device):
            encoder = UMT5EncoderModel(config)
        return encoder.to(self.dtype).eval().requires_grad_(False)

    def _vae_config(self) -> dict[str, Any]:
        return {"temperal_downsample": [False, True, True], **self.tree["bench"]["vae"]}
