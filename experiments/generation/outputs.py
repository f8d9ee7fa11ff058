"""How sampled clips are stored: as decoded pixels, as latents, or as mp4 files."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.values import fault
from experiments.generation.codec import autoencoder_of
from experiments.generation.mp4 import clip_file, write_mp4

SAVED = ("pixels", "latents", "mp4")


class Saver:
    """Decodes and stores batches of clips.

    Args:
        how: ``pixels`` stores decoded videos (shards of kind ``videos``); ``latents`` is for worlds
            whose latents are the data (kind ``clips``); ``mp4`` writes one file per clip in
            addition to shards of latents.
        folder: of the run.
        manifest: of the prompts; names the autoencoder.
        device: where clips are decoded.
        compile: as `autoencoder_of`.
    """

    def __init__(
        self,
        how: str,
        folder: Path,
        manifest: Mapping[str, Any],
        device: torch.device,
        compile: bool = False,
    ) -> None:
        self._how, self._folder, self._fps = how, folder, manifest["fps"]
        self._autoencoder = None
        if how != "latents":
            self._autoencoder = autoencoder_of(manifest, device, compile=compile)

    @property
    def kind(self) -> str:
        """The kind of the shard set."""
        return "videos" if self._how == "pixels" else "clips"

    def load(self) -> None:
        """Read the autoencoder's weights, for which no other thread may compute (`WanVAE.load`)."""
        if self._autoencoder is not None:
            self._autoencoder.load()

    def stored(
        self, samples: Sequence[Mapping[str, Any]], clips: Tensor
    ) -> list[tuple[dict[str, np.ndarray], np.ndarray | None]]:
        """For each of ``clips`` ``[B, F, C, H, W]`` the arrays to store, and the video to `write`.

        Raises:
            ValueError: a decoded clip of one colour throughout, by the sample's key.
        """
        if self._how == "pixels":
            return [({"video": video}, None) for video in self._pixels(samples, clips)]
        videos = self._pixels(samples, clips) if self._how == "mp4" else [None] * len(samples)
        return [
            ({"latents": clip, "text": np.asarray(sample["text"])}, video)
            for sample, clip, video in zip(samples, clips.cpu().numpy(), videos, strict=True)
        ]

    def write(self, sample: Mapping[str, Any], video: Iterable[np.ndarray]) -> None:
        """Write a sample's mp4 of frames uint8 ``[H, W, 1 or 3]``; raises as `write_mp4`."""
        write_mp4(clip_file(self._folder, sample["key"]), video, self._fps)

    def _pixels(self, samples: Sequence[Mapping[str, Any]], clips: Tensor) -> np.ndarray:
        """Uint8 ``[B, T, H, W, c]``."""
        assert self._autoencoder is not None
        videos = self._autoencoder.decode(clips).cpu().numpy()
        for sample, video in zip(samples, videos, strict=True):
            if why := fault(video, varied=True):
                raise ValueError(f"sample {sample['key']!r}: its decoded video is {why}")
        return videos
