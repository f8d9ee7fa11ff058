"""How clips are sampled: the section ``sample`` of a recipe, and a function for each batch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

from torch import Tensor

from experiments.generation.generation import check_precision
from experiments.generation.outputs import SAVED
from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.fast_past import COMMITS, FastPast
from lightning_modules.diffusion.flow import time_grid
from lightning_modules.diffusion.forcing import VelocityNetwork
from lightning_modules.diffusion.noisy_past import require_noisy_block, require_two_steps
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import (
    FewSteps,
    Solve,
    block_times,
    few_step_times,
    rollout,
    solve,
)
from lightning_modules.diffusion.visibility import partition
from lightning_modules.ranges import (
    Blocks,
    ClipShape,
    NoiseLevel,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    SolverSteps,
    UnitInterval,
)

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
        levels: noise levels of each block, the last list repeated, in place of ``few_steps`` and
            ``first_few_steps``; ``[]``: their grids.
        noisy_from: index of the first block whose commit is ``none``; None: ``commit`` is that of
            all blocks.

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
    levels: list[list[NoiseLevel]] = field(default_factory=list)
    noisy_from: NonNegativeInt | None = None

    def __post_init__(self) -> None:
        for key, known in (("sampler", SAMPLERS), ("save", SAVED), ("commit", COMMITS)):
            if getattr(self, key) not in known:
                raise ValueError(f"sample.{key}: {getattr(self, key)!r} is none of {known}")
        check_precision(self.precision, "sample")
        ends = list(accumulate(self.sizes))
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
        if self.context_t and (self.commit == "none" or self.noisy_from is not None):
            raise ValueError(
                "sample.context_t: without a commit the context is as noisy as its last denoising"
                " call; set it to 0, or sample.commit to separate or fused and noisy_from to null"
            )
        self._check_schedule()
        if self.sampler == "bidirectional_ode" and (self.given or self.window or self.context_t):
            raise ValueError(
                "sample.sampler: bidirectional_ode samples all frames jointly: given, window and"
                " context_t must be 0"
            )

    def _check_schedule(self) -> None:
        if self.noisy_from is not None and self.commit == "none":
            raise ValueError(
                f"sample.noisy_from: {self.noisy_from}, but with sample.commit none every block"
                " stays noisy; set commit to separate or fused, which is that of earlier blocks"
            )
        for key in ("levels", "noisy_from"):
            if self.sampler != "few_steps" and getattr(self, key) not in ([], None):
                raise ValueError(
                    f"sample.{key}: only the sampler few_steps takes it, not {self.sampler}"
                )
        require_noisy_block(len(self.sizes), self.noisy_from, "sample.noisy_from")
        self._check_noisy_context(self.steps)

    def _check_noisy_context(self, steps: list[int]) -> None:
        """Blocks of conditioning frames are clean; all at once have no context."""
        said, cure = f"sample.noisy_from: {self.noisy_from}", "noisy_from to null"
        first = self.noisy_from
        if self.commit == "none":
            said, first, cure = "sample.commit: none", 0, "commit to separate or fused"
        given = sum(end <= self.given for end in accumulate(self.sizes))
        if first is not None and self.sampler != "bidirectional_ode":
            require_two_steps(steps, max(first, given), said, cure)

    @property
    def steps(self) -> list[int]:
        """How often each block is denoised."""
        if self.sampler == "few_steps":
            return list(map(len, self.times))
        return [self.intervals] * len(self.sizes)

    @property
    def times(self) -> list[Tensor]:
        """Each block's noise levels of the sampler ``few_steps``."""
        if self.levels:
            return block_times(self.sizes, self.levels, "sample.levels")
        return few_step_times(self.sizes, self.few_steps, self.first_few_steps, self.shift)

    @property
    def draws(self) -> list[str]:
        """Purposes of the normal draws of a clip."""
        last = max(map(len, self.times)) if self.sampler == "few_steps" else 1
        later = [f"renoise/{step}" for step in range(1, last)]
        return ["noise", *later, *(["context"] if self.context_t else [])]

    @property
    def noisy_frame(self) -> int | None:
        """First frame of the block ``noisy_from``."""
        return None if self.noisy_from is None else sum(self.sizes[: self.noisy_from])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Frames of each block."""
        return partition(self.blocks, self.frames)

    @property
    def shape(self) -> list[int]:
        """``[F, C, H, W]`` of what is sampled."""
        return [self.frames, *self.clip_shape[1:]]


def sampler_of(student: VelocityNetwork, settings: Sampling, negative: Tensor) -> Generate:
    """One function for every batch; its caches are made once."""
    shape, sizes = settings.shape, settings.sizes
    grid = time_grid(settings.intervals, settings.shift).to(negative.device)
    times = [levels.to(negative.device) for levels in settings.times]
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
        noisy_from=settings.noisy_frame,
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
