"""What a session needs to know of a student: its network, its encoders, how it is sampled."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.generation.walk import Camera
from lightning_modules.diffusion.visibility import without_end
from lightning_modules.networks.encoders import Autoencoder, TextEncoder


@dataclass(frozen=True, eq=False)
class Picture:
    """A first frame that a session may begin with.

    Args:
        caption: of the clip that it is from; "" if it is from none.
        frame: uint8 ``[H, W, 1 or 3]``.
        start: x, z and yaw of its camera in the world of the data, where that says so.
    """

    caption: str
    frame: np.ndarray
    start: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Student:
    """A network that streams, with its encoders and how it is sampled.

    Args:
        name: for people.
        identity: of its weights.
        network: under the contract, for inference.
        text, autoencoder: the encoders that it was trained with.
        negative: ``[L, D]``, the negative prompt; of guidance other than 1.
        clip_shape: ``[F, C, H, W]`` of its training clips.
        blocks: frames of each block; the last one is repeated.
        sampler: ``few_steps``, or ``autoregressive_ode`` of an AR teacher.
        steps: of a block, as it was trained.
        first_steps: least steps of the first block, which has no context.
        shift, guidance: of the sampler.
        window: latent frames a block attends to, its own included.
        sinks: first latent frames that stay in the window.
        sinks_follow: whether their positions stay beside the window's.
        fps: pixel frames per second.
        precision: ``32-true`` or ``bf16-mixed``.
        device: where it runs.
        captions: prompts like those it was trained on.
        camera: that keys move; None: of a network without cameras.
        pictures: to begin with.

    Raises:
        ValueError: a window without room.
    """

    name: str
    identity: str
    network: Any
    text: TextEncoder
    autoencoder: Autoencoder
    negative: Tensor
    clip_shape: tuple[int, int, int, int]
    blocks: tuple[int, ...]
    sampler: str
    steps: int
    first_steps: int
    shift: float
    guidance: float
    window: int
    sinks: int
    fps: float
    precision: str
    device: torch.device
    captions: tuple[str, ...] = ()
    camera: Camera | None = None
    pictures: tuple[Picture, ...] = ()
    sinks_follow: bool = False

    def __post_init__(self) -> None:
        least = self.sinks + max(self.blocks) + 1
        if self.window < least:
            raise ValueError(
                f"--window: {self.window} latent frames have no room for {self.sinks} sinks, a"
                f" block of {max(self.blocks)} and a frame between them; give {least} or more"
            )

    @cached_property
    def embed(self) -> Callable[[str], Tensor]:
        """From a prompt to ``[1, L, D]``; the last 64 are kept.

        It raises ValueError for words that the world does not have.
        """
        return lru_cache(maxsize=64)(lambda prompt: self.text.encode([prompt]).to(self.device))

    def beyond(self, prompts: Sequence[str]) -> str:
        """What to say of prompts that the text encoder cuts; "" if there are none."""
        longest = max(self.text.beyond(prompts), default=0)
        if not longest:
            return ""
        return f"a prompt has {longest} tokens and is cut after {self.text.length}"

    def require_context(self, recorded: Mapping[str, Any]) -> None:
        """Raise ValueError if a recording says that the student saw another context."""
        for option in ("window", "sinks", "sinks_follow"):
            now = getattr(self, option)
            if recorded.get(option, now) != now:
                raise ValueError(
                    f"--{option.replace('_', '-')}: recorded with {recorded[option]}, this is"
                    f" {now}; give what was recorded"
                )

    def require_keys(self, keys: Collection[str]) -> None:
        """Raise ValueError if these keys do not move its camera, or if it has none."""
        if self.camera is None:
            raise ValueError(
                f"keys: {self.name} was made without cameras, so that no key moves it; give no"
                " keys, or a student of clips with cameras (scale room)"
            )
        self.camera.check(keys, self.name)

    def require_frame(self, image: np.ndarray) -> None:
        """Raise ValueError for an image that is no frame of its videos."""
        expected = (*self.size, self.autoencoder.pixel_channels)
        if image.shape != expected:
            raise ValueError(
                f"a first frame {list(image.shape)}; those of {self.name} are {list(expected)}"
            )

    def picture_for(self, prompt: str) -> Picture | None:
        """The first picture of a clip with this caption, if there is one."""
        return next((each for each in self.pictures if each.caption == prompt), None)

    def sizes(self, given: bool) -> Iterator[int]:
        """Latent frames of each block, without an end; of an image that is given, first one."""
        return chain([1] if given and self.blocks[0] != 1 else [], without_end(self.blocks))

    def pixels(self, latents: int) -> int:
        """Pixel frames of so many latent frames."""
        return 1 + (latents - 1) * self.autoencoder.temporal_stride

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        side = self.autoencoder.spatial_stride
        return self.clip_shape[2] * side, self.clip_shape[3] * side
