"""``sample``: generate and store clips for held-out prompts.

Image to video is the same rollout, without further training: with ``given: 1`` the first latent
frame is a conditioning frame, the encoded image of ``needs.pictures`` or the first frame of the
clip in ``needs.prompts``. Clips longer than the training clips need a ``window``
(``lightning_modules/diffusion/fast_past.py``).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from datamodules.shards.reader import ShardReader, ShardWriter, open_shards
from experiments.generation.codec import follow_autoencoder
from experiments.generation.conditioning import Conditioning, encoded_images, first_frames_of_clips
from experiments.generation.faults import require_sound
from experiments.generation.generation import (
    autocast,
    batches,
    check_precision,
    encoders_of,
    frozen,
    require_given,
    require_usable,
    samples_per_shard,
    stack,
)
from experiments.generation.outputs import SAVED, Saver
from experiments.launch.hardware import accelerated, launch_of, prepare
from experiments.launch.memory.check import before_generation
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.fast_past import COMMITS, FastPast
from lightning_modules.diffusion.flow import time_grid
from lightning_modules.diffusion.forcing import VelocityNetwork
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import FewSteps, Solve, few_step_times, rollout, solve
from lightning_modules.diffusion.visibility import partition
from lightning_modules.ranges import (
    Blocks,
    ClipShape,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    SolverSteps,
    UnitInterval,
)

log = logging.getLogger(__name__)
SAMPLERS = ("few_steps", "autoregressive_ode", "bidirectional_ode")

Generate = Callable[[Tensor, Randomness, Tensor | None], Tensor]
"""From prompts ``[B, L, D]``, random draws and conditioning frames to ``[B, F, C, H, W]``."""


@dataclass(frozen=True)
class Sampling:
    """The section ``sample`` of a recipe.

    Args:
        sampler: ``few_steps`` for students, ``autoregressive_ode`` for an AR teacher,
            ``bidirectional_ode`` for a base model.
        first: index of the first prompt of the set.
        count: number of clips.
        batch: batch size.
        clip_shape: ``[F, C, H, W]`` of the training clips.
        frames: latent frames to sample; more than ``F`` should have a window.
        given: number of conditioning frames, from ``needs.pictures`` (one) or from the clips of
            ``needs.prompts``; whole blocks.
        blocks: frames per block.
        window: frames a block attends to, its own included; 0: all.
        sinks: first frames that stay in the window.
        commit: the KV-cache update: ``separate``, ``fused``, ``none`` (``fast_past.py``).
        context_t: noise level of the context.
        few_steps, first_few_steps: of the sampler ``few_steps``, which has no guidance.
        intervals, guidance: of the two ODE samplers.
        shift: timestep shift.
        save: how (``generation/outputs.py``): ``pixels``, ``latents`` or ``mp4``.
        precision: of the network; solver states are always float32.

    Raises:
        ValueError: settings that do not fit each other, by their keys.
    """

    sampler: str
    first: NonNegativeInt
    count: PositiveInt
    batch: PositiveInt
    clip_shape: ClipShape
    frames: PositiveInt
    given: NonNegativeInt
    blocks: Blocks
    window: NonNegativeInt
    sinks: NonNegativeInt
    commit: str
    context_t: UnitInterval
    few_steps: SolverSteps
    first_few_steps: SolverSteps
    intervals: SolverSteps
    shift: Positive
    guidance: NonNegative
    save: str
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for key, known in (("sampler", SAMPLERS), ("save", SAVED), ("commit", COMMITS)):
            if getattr(self, key) not in known:
                raise ValueError(f"sample.{key}: {getattr(self, key)!r} is none of {known}")
        check_precision(self.precision, "sample")
        ends = [sum(self.sizes[: number + 1]) for number in range(len(self.sizes))]
        if self.given not in (0, *ends[:-1]):
            raise ValueError(
                f"sample.given: {self.given} frames do not end with a block; use one of"
                f" {ends[:-1]}, or other blocks, such as [1, 3]"
            )
        least = self.sinks + max(self.sizes) + 1
        if self.window and self.window < min(least, self.frames) or self.sinks and not self.window:
            raise ValueError(
                f"sample.window: {self.window} has no room for {self.sinks} sinks, a block of"
                f" {max(self.sizes)} and a frame between them; use {least} or more, or no sinks"
            )
        if self.context_t and self.commit == "none":
            raise ValueError(
                "sample.context_t: without a commit the context is as noisy as its last denoising"
                " call; set it to 0, or sample.commit to separate or fused"
            )
        if self.sampler == "bidirectional_ode" and (self.given or self.window or self.context_t):
            raise ValueError(
                "sample.sampler: bidirectional_ode samples all frames jointly: given, window and"
                " context_t must be 0"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Frames of each block."""
        return partition(self.blocks, self.frames)

    @property
    def shape(self) -> list[int]:
        """``[F, C, H, W]`` of what is sampled."""
        return [self.frames, *self.clip_shape[1:]]


def check(recipe: dict[str, Any]) -> None:
    """Refuse a recipe whose settings do not fit, before anything is loaded."""
    require_given(recipe, "sample.clip_shape", _settings(recipe).clip_shape)
    launch_of(recipe)


def run(recipe: dict[str, Any], folder: RunFolder) -> None:
    """Sample ``needs.student`` on the prompts of ``needs.prompts``."""
    device, settings = prepare(recipe), _settings(recipe)
    prompts = open_shards(folder.need("prompts") / "shards")
    follow_autoencoder(prompts, folder)
    where = folder.need("student")
    require_usable("student", where, "sample.clip_shape", settings.clip_shape, prompts)
    before_generation(
        where,
        prompts,
        launch_of(recipe),
        device,
        clip_shape=settings.shape,
        sizes=settings.sizes,
        batch=settings.batch,
        cached=settings.sampler != "bidirectional_ode",
        guided=settings.sampler != "few_steps" and settings.guidance != 1,
        half=settings.precision == "bf16-mixed",
        window=settings.window,
        pixels=settings.save != "latents" or "pictures" in recipe["needs"],
    )
    student = frozen(where, device, settings.precision)
    generate_clips(
        accelerated(student, launch_of(recipe), device),
        prompts,
        settings,
        folder,
        recipe["seed"],
        device,
    )


def _settings(recipe: dict[str, Any]) -> Sampling:
    settings = Sampling(**bind(Sampling, recipe.get("sample", {}), section="sample"))
    if "pictures" in recipe["needs"] and settings.given != 1:
        raise ValueError(
            f"sample.given: {settings.given}, but an image of needs.pictures is one latent frame;"
            " set it to 1"
        )
    return settings


@torch.no_grad()
def generate_clips(
    student: VelocityNetwork,
    prompts: ShardReader,
    settings: Sampling,
    folder: RunFolder,
    seed: int,
    device: torch.device,
) -> None:
    """Write, or resume writing, the clips as shards, each with its prompt's metadata.

    Raises:
        FileNotFoundError: a prompt has no image.
        ValueError: the set has too few prompts, or no conditioning frames.
    """
    numbers = _numbers(prompts, settings)
    conditioning = _conditioning(prompts, settings, folder, numbers, device)
    negative = torch.from_numpy(prompts.negative).to(device)
    generate = sampler_of(student, settings, negative)
    saver = Saver(settings.save, folder.path, prompts.manifest, device)
    fields = ["text", *conditioning.fields]
    about = {"sampler": settings.sampler, "student": folder.identity("student"), "seed": seed}
    about |= {"source": prompts.fingerprint, "given": settings.given, **encoders_of(prompts)}
    about |= conditioning.about
    writer = ShardWriter(
        folder.path / "shards",
        saver.kind,
        about=about,
        samples_per_shard=samples_per_shard({"clip": settings.shape, "text": negative.shape}),
        resume=True,
    )
    with writer:
        for stop, samples in batches(prompts, numbers, settings.batch, fields, writer.written):
            keys = [sample["key"] for sample in samples]
            text, frames = stack(samples, "text", device), conditioning.frames(samples)
            inputs = text, Randomness(seed, 0, keys, device), frames
            with autocast(device, settings.precision):
                clips = generate(*inputs)
                again = partial(generate, *inputs)
                require_sound(clips, keys, student, "student", again)
            for sample, arrays in zip(samples, saver.arrays(samples, clips), strict=True):
                if sample["key"] not in writer.written:
                    writer.write(sample["key"], arrays, sample["info"])
            folder.progress(stop - numbers.start, settings.count, "clips")
    log.info("%d clips by %s", settings.count, settings.sampler)


def sampler_of(student: VelocityNetwork, settings: Sampling, negative: Tensor) -> Generate:
    """One function for every batch; its caches are made once."""
    shape, sizes = settings.shape, settings.sizes
    grid = time_grid(settings.intervals, settings.shift).to(negative.device)
    times = few_step_times(sizes, settings.few_steps, settings.first_few_steps, settings.shift)
    students = settings.sampler == "few_steps"
    past = FastPast(
        student,
        negative[None],
        negative,
        1.0 if students else settings.guidance,
        frames=settings.frames,
        window=settings.window,
        sinks=settings.sinks,
        commit=settings.commit,
    )

    def generate(text: Tensor, random: Randomness, conditioning: Tensor | None = None) -> Tensor:
        noise = random.normal("noise", shape)
        if settings.sampler == "bidirectional_ode":
            v = forcing.bidirectional_ode(student, text, negative, settings.guidance)
            return solve(v, noise, grid.float())[0]
        denoise = Solve(grid)
        if students:
            denoise = FewSteps(times, lambda step: random.normal(f"renoise/{step}", shape))
        context = random.normal("context", shape) if settings.context_t else None
        return rollout(
            past.restart(text),
            noise,
            sizes,
            denoise,
            conditioning=conditioning,
            context_t=settings.context_t,
            context_eps=context,
        )

    return generate


def _conditioning(
    prompts: ShardReader,
    settings: Sampling,
    folder: RunFolder,
    numbers: range,
    device: torch.device,
) -> Conditioning:
    """The conditioning frames of the recipe's needs."""
    if "pictures" in folder.recipe["needs"]:
        where = folder.need("pictures")
        return encoded_images(where, prompts, numbers, settings.clip_shape, device)
    if settings.given:
        return first_frames_of_clips(prompts, settings.given, settings.clip_shape, device)
    return Conditioning()


def _numbers(prompts: ShardReader, settings: Sampling) -> range:
    """Indices of the prompts to sample; the set must have them all."""
    numbers = range(settings.first, settings.first + settings.count)
    if numbers.stop > len(prompts):
        raise ValueError(
            f"sample.count: prompts {numbers.start}..{numbers.stop - 1} wanted, {prompts.folder}"
            f" has {len(prompts)}; lower it, or curate more"
        )
    return numbers
