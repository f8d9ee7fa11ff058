"""Wan's VAE and text encoder for curation: pixels and captions to stored latents and embeddings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.curation.refusal import Refused
from experiments.runs.config import nearest
from lightning_modules.networks.encoders import WAN_NEGATIVE_PROMPT, WanText, WanVAE

log = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TEXT_BATCH = 8  # captions per batch; affects the result by rounding


class WanEncoders:
    """VAE and text encoder of one Wan folder; each is loaded when it is first used.

    Args:
        folder: a Wan pipeline, by path or hub id.
        device: where both run.
        vae_dtype, text_dtype: of the weights, a key of `DTYPES`.

    Raises:
        FileNotFoundError, ValueError: as `WanVAE` and `WanText`.
    """

    def __init__(self, folder: Path, device: torch.device, vae_dtype: str, text_dtype: str) -> None:
        self._dtypes = {"vae": vae_dtype, "text": text_dtype}
        self.vae = WanVAE(folder, device, DTYPES[vae_dtype])
        self.text = WanText(folder, device, DTYPES[text_dtype])

    def about(self, fps: int) -> dict[str, Any]:
        """Manifest entries of a set of clips, or of prompts that clips will be made for."""
        vae, text = self.vae, self.text
        return {
            "fps": fps,
            "channels": vae.channels,
            "normalisation": {"mean": vae.mean, "std": vae.std},
            "autoencoder": {
                "class": "WanVAE",
                "id": vae.id,
                "folder": vae.source,
                "dtype": self._dtypes["vae"],
            },
            "text_encoder": {
                "class": "WanText",
                "id": text.id,
                "folder": text.source,
                "dtype": self._dtypes["text"],
            },
            "negative_prompt": WAN_NEGATIVE_PROMPT,
        }

    def negative(self) -> np.ndarray:
        """Wan's fixed negative prompt, float32 [L, D]."""
        return self.text.encode([WAN_NEGATIVE_PROMPT])[0].cpu().numpy()

    def pixels_of(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Frames, height and width of the video behind latents [F, C, h, w].

        Raises:
            ValueError: the VAE has another number of channels.
        """
        frames, channels, height, width = clip_shape
        if channels != self.vae.channels:
            raise ValueError(
                f"curate.clip_shape: {channels} channels, the VAE of {self.vae.source} has"
                f" {self.vae.channels}"
            )
        side = self.vae.spatial_stride
        return 1 + (frames - 1) * self.vae.temporal_stride, height * side, width * side

    def latents(self, video: np.ndarray) -> np.ndarray:
        """Uint8 [T, H, W, 3] -> normalised float16 [F, C, h, w].

        Raises:
            Refused: latents beyond the range of float16.
        """
        half = self.vae.encode(torch.from_numpy(video)[None])[0].cpu().numpy().astype(np.float16)
        if not np.isfinite(half).all():
            raise Refused("not finite", "latents that float16 cannot hold")
        return half

    def texts(self, captions: Sequence[str]) -> Iterator[np.ndarray]:
        """Float16 [L, D] of each caption, encoded in batches; logs how many do not fit."""
        if cut := self.text.beyond(captions):
            log.warning(
                "%d of %d captions have more than the %d tokens of the text encoder (the longest"
                " %d) and are cut there",
                len(cut),
                len(captions),
                self.text.length,
                max(cut),
            )
        for start in range(0, len(captions), TEXT_BATCH):
            yield from self.text.encode(captions[start : start + TEXT_BATCH]).cpu().half().numpy()


def check_dtypes(**chosen: str) -> None:
    """Refuse a name that is no key of `DTYPES`; the settings' names are the arguments'."""
    for name, dtype in chosen.items():
        if dtype not in DTYPES:
            raise ValueError(
                f"curate.{name}: {dtype!r} is none of {', '.join(DTYPES)}{nearest(dtype, DTYPES)}"
            )
