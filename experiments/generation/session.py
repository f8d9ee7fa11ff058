"""A streaming session: one clip without an end, block by block.

A session is a function of (student, seed, events by block). Noise is drawn for each block, and an
event acts on the block that is made next, so a recording of the events replays to the same bytes.
The context is a window with attention sinks (``diffusion/fast_past.py``).

An event of the prompt says what becomes of the context:

    keep      only the text changes: cheap, slow to be seen
    rewrite   the window's frames are shown again under the new prompt (LongLive's KV recache)
    cut       all is forgotten but the last frame

Keys move the camera of a student with cameras (``walk.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from datamodules.cameras import Keys
from datamodules.values import fault
from experiments.generation.events import Event, NewKeys, NewPrompt, NewSteps
from experiments.generation.generation import autocast
from experiments.generation.student import Student
from experiments.generation.walk import Walk
from lightning_modules.diffusion.fast_past import FastPast
from lightning_modules.diffusion.flow import time_grid
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import Past, Solve, few_step_times, few_steps, stream
from lightning_modules.networks.cameras import Posed


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
        keys: that moved its camera.
        denoise_s, decode_s: seconds; the first includes the update of the context before it.
    """

    index: int
    first: int
    frames: np.ndarray
    events: tuple[Event, ...]
    steps: int
    prompt: str
    keys: Keys
    denoise_s: float
    decode_s: float


class Session:
    """An endless clip of one student.

    Args:
        student: the student.
        prompt: of the first block.
        seed: of all noise.
        steps: sampling steps; None: as the student was trained.
        image: uint8 ``[H, W, 1 or 3]``, the first frame (image to video); None: it is made, too.
        start: x, z and yaw of the image's camera, see `walk.Walk`.
        events: by block, to replay a recording.

    Raises:
        ValueError: a prompt that the text encoder refuses; an image of another shape; keys in
            `events` that move nothing.
    """

    def __init__(
        self,
        student: Student,
        prompt: str,
        seed: int,
        steps: int | None = None,
        image: np.ndarray | None = None,
        start: Sequence[float] | None = None,
        events: Mapping[int, Sequence[Event]] | None = None,
    ) -> None:
        self.student, self.prompt, self.seed = student, prompt, seed
        self.image, self.start = image, None if start is None else list(start)
        self.steps = steps or student.steps
        if image is not None:
            student.require_frame(image)
        self._events = {block: list(those) for block, those in (events or {}).items()}
        for event in chain(*self._events.values()):
            if isinstance(event, NewKeys):
                student.require_keys(event.keys)
        camera = student.camera
        self._walk = Walk(camera, student.device, self.start) if camera else None
        network = Posed(student.network, self._walk.cameras) if self._walk else student.network
        self._acted: tuple[Event, ...] = ()
        self._index = self._shown = 0
        self._latents: dict[int, tuple[int, Tensor]] = {}  # of held frames: block, [1, 1, C, H, W]
        self._decoder = student.autoencoder.stream()
        self._past = FastPast(
            network,
            student.embed(prompt),
            student.negative,
            student.guidance,
            frames=None,
            window=student.window,
            sinks=student.sinks,
            sinks_follow=student.sinks_follow,
            commit="fused",
        )
        self._blocks = self._stream()

    def request(self, event: Event) -> None:
        """Let an event act on the next block. Raises ValueError for one that is refused."""
        if isinstance(event, NewKeys):
            self.student.require_keys(event.keys)
            self._walk.press(event.keys)
            return
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
            self.prompt, self._walk.keys if self._walk else frozenset(),
            denoised - start, perf_counter() - denoised,
        )  # fmt: skip
        self._index, self._shown = self._index + 1, self._shown + len(frames)
        self._acted = ()
        return block

    def _stream(self) -> Iterator[Tensor]:
        """Each block's ``x0``, ``[1, n, C, H, W]``; kept while the context has its frames."""
        student, conditioning = self.student, None
        sizes = student.sizes(self.image is not None)
        if self.image is not None:
            video = torch.from_numpy(self.image)[None, None].to(student.device)
            conditioning = student.autoencoder.encode(video).float()
        last = 0
        blocks = stream(self._past, self._noise, sizes, self._denoise, conditioning=conditioning)
        for index, x0 in enumerate(blocks):
            held = self._past.held
            self._latents = {k: kept for k, kept in self._latents.items() if k in held}
            for frame in x0.split(1, dim=1):
                self._latents[last] = (index, frame)
                last += 1
            if self._walk:
                self._walk.keep(self._latents)
            yield x0

    def _noise(self, block: slice) -> Tensor:
        return self._random.normal("noise", self._shape(block))

    def _denoise(self, past: Past, x: Tensor, block: slice, index: int) -> Tensor:
        for number in [number for number in self._events if number <= index]:
            for event in self._events.pop(number):
                self._act(event, block.stop - block.start)
        if self._walk:
            self._go(self._walk, block)
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

    def _go(self, walk: Walk, block: slice) -> None:
        """Move the camera through a block, and the origin with it."""
        before = walk.keys
        walk.go(block)
        if walk.keys != before:  # however often they went up and down since the last block
            self._acted += (NewKeys(tuple(walk.keys)),)
        if (change := walk.move_origin()) is not None:
            self._past.cache.move_origin(change)

    def _act(self, event: Event, size: int) -> None:
        """Let an event act, before a block of ``size`` frames."""
        if isinstance(event, NewKeys):
            self._walk.press(event.keys)
            return
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
