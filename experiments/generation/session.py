"""A streaming session: one clip without an end, block by block.

A session is a function of (student, seed, events by block). Noise is drawn for each block, and an
event acts on the block that is made next, so a recording of the events replays to the same bytes.
The context is a window with attention sinks (``diffusion/fast_past.py``).

An event of the prompt says what becomes of the context:

    keep      only the text changes: cheap, slow to be seen
    rewrite   the window's frames are shown again under the new prompt (LongLive's KV recache)
    cut       all is forgotten but the last frame
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, groupby
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.values import fault
from experiments.generation.events import Event, NewPrompt, NewSteps
from experiments.generation.generation import autocast
from lightning_modules.diffusion.fast_past import FastPast
from lightning_modules.diffusion.flow import time_grid
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import Past, Solve, few_step_times, few_steps, stream
from lightning_modules.diffusion.visibility import without_end
from lightning_modules.networks.encoders import Autoencoder, TextEncoder


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
        fps: pixel frames per second.
        precision: ``32-true`` or ``bf16-mixed``.
        device: where it runs.
        captions: prompts like those it was trained on.

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

    @property
    def pixels(self) -> int:
        """Pixel frames of a training clip."""
        return 1 + (self.clip_shape[0] - 1) * self.autoencoder.temporal_stride

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        side = self.autoencoder.spatial_stride
        return self.clip_shape[2] * side, self.clip_shape[3] * side


@dataclass(frozen=True)
class Block:
    """A block as it was made.

    Args:
        index: of the block.
        first: number of its first pixel frame.
        frames: uint8 ``[T, H, W, 1 or 3]``.
        events: that acted on it.
        steps: its sampling steps.
        prompt: its prompt.
        denoise_s, decode_s: seconds; the first includes the update of the context before it.
    """

    index: int
    first: int
    frames: np.ndarray
    events: tuple[Event, ...]
    steps: int
    prompt: str
    denoise_s: float
    decode_s: float


class Session:
    """An endless clip of one student.

    Args:
        student: the student.
        prompt: of the first block.
        seed: of all noise.
        steps: sampling steps; None: as the student was trained.
        image: uint8 ``[H, W, 1 or 3]``, the first frame (image to video).
        events: by block, to replay a recording.

    Raises:
        ValueError: a prompt that the text encoder refuses.
    """

    def __init__(
        self,
        student: Student,
        prompt: str,
        seed: int,
        steps: int | None = None,
        image: np.ndarray | None = None,
        events: Mapping[int, Sequence[Event]] | None = None,
    ) -> None:
        self.student, self.prompt, self.seed = student, prompt, seed
        self.steps = steps or student.steps
        self._events = {block: list(those) for block, those in (events or {}).items()}
        self._acted: tuple[Event, ...] = ()
        self._index = self._shown = 0
        self._latents: dict[int, tuple[int, Tensor]] = {}  # of held frames: block, [1, 1, C, H, W]
        self._decoder = student.autoencoder.stream()
        self._past = FastPast(
            student.network,
            student.embed(prompt),
            student.negative,
            student.guidance,
            frames=None,
            window=student.window,
            sinks=student.sinks,
            commit="fused",
        )
        self._blocks = self._stream(image)

    def request(self, event: Event) -> None:
        """Let an event act on the next block. Raises ValueError for a prompt that is refused."""
        if isinstance(event, NewPrompt):
            self.student.embed(event.text)
        self._events.setdefault(self._index, []).append(event)

    @torch.no_grad()
    def next(self) -> Block:
        """Make the next block.

        Raises:
            ValueError: the network's output is not finite or out of range.
        """
        start = perf_counter()
        with autocast(self.student.device, self.student.precision):
            x0 = next(self._blocks)
            if why := fault(x0):
                raise ValueError(f"block {self._index} of {self.student.name} is {why}")
        denoised = perf_counter()
        frames = self._decoder.decode(x0)[0].cpu().numpy()
        block = Block(
            self._index, self._shown, frames, self._acted, self._steps_of(self._index),
            self.prompt, denoised - start, perf_counter() - denoised,
        )  # fmt: skip
        self._index, self._shown = self._index + 1, self._shown + len(frames)
        self._acted = ()
        return block

    def _stream(self, image: np.ndarray | None) -> Iterator[Tensor]:
        """Each block's ``x0``, ``[1, n, C, H, W]``; kept while the context has its frames."""
        student, conditioning = self.student, None
        sizes = without_end(student.blocks)
        if image is not None:
            video = torch.from_numpy(image)[None, None].to(student.device)
            conditioning = student.autoencoder.encode(video).float()
            sizes = chain([1] if student.blocks[0] != 1 else [], sizes)
        last = 0
        blocks = stream(self._past, self._noise, sizes, self._denoise, conditioning=conditioning)
        for index, x0 in enumerate(blocks):
            held = self._past.held
            self._latents = {k: kept for k, kept in self._latents.items() if k in held}
            for frame in x0.split(1, dim=1):
                self._latents[last] = (index, frame)
                last += 1
            yield x0

    def _noise(self, block: slice) -> Tensor:
        return self._random.normal("noise", self._shape(block))

    def _denoise(self, past: Past, x: Tensor, block: slice, index: int) -> Tensor:
        for number in [number for number in self._events if number <= index]:
            for event in self._events.pop(number):
                self._act(event, block.stop - block.start)
        steps, shift = self._steps_of(index), self.student.shift
        if self.student.sampler != "few_steps":
            return Solve(time_grid(steps, shift))(past, x, block, index)
        (times,) = few_step_times([1], steps, steps, shift)
        random, shape = self._random, self._shape(block)
        return few_steps(
            past, x, block, times, lambda step: random.normal(f"renoise/{step}", shape)
        )

    @property
    def _random(self) -> Randomness:
        return Randomness(self.seed, self._index, ["session"], self.student.device)

    def _shape(self, block: slice) -> list[int]:
        return [block.stop - block.start, *self.student.clip_shape[1:]]

    def _steps_of(self, index: int) -> int:
        return self.steps if index else max(self.steps, self.student.first_steps)

    def _act(self, event: Event, size: int) -> None:
        """Let an event act, before a block of ``size`` frames."""
        self._acted += (event,)
        if isinstance(event, NewSteps):
            self.steps = event.steps
            return
        self.prompt = event.text
        text = self.student.embed(event.text)
        if event.how == "keep" or not self._latents:
            self._past.say(text)
        elif event.how == "cut":
            self._show_again(text, [max(self._latents)])
        else:
            held, sinks = sorted(self._past.held), self.student.sinks
            room = self.student.window - size - sinks
            self._show_again(text, [*held[:sinks], *held[sinks:][-room:]])

    def _show_again(self, text: Tensor, frames: Sequence[int]) -> None:
        groups = groupby(frames, key=lambda frame: self._latents[frame][0])
        runs = [list(group) for _, group in groups]
        x0 = torch.cat([self._latents[frame][1] for frame in frames], dim=1)
        self._past.show_again(text, x0, [slice(run[0], run[-1] + 1) for run in runs])
