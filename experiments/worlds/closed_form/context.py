"""Inputs of the `law.*` metrics: a law and, as available, clips, a student and clean contexts.

Frames are vectors: clips are float64 `[N, F, d]`. Networks take latents `[N, F, C, H, W]`; `View`
converts. Every metric has its own random generator, so that metrics do not affect each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from experiments.metrics.registry import metric
from experiments.metrics.statistics import resample_weights
from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.flow import time_grid
from lightning_modules.diffusion.rollout import solve
from lightning_modules.networks.closed_form.network import ClosedForm

RUNGE_KUTTA_STEPS = 24  # of fourth order leave an error far below any that is measured
of_law = partial(
    metric, scope="set", unit="", higher_is_better=None, needs=("law_alone",), kind="exact"
)
"""Registers a property of the law; measured only in score runs of the law alone, hence once."""
of_samples = partial(
    metric, scope="set", unit="", higher_is_better=False, needs=("law", "samples"), kind="exact"
)
"""Registers a metric of generated clips."""
of_student = partial(of_samples, needs=("law", "student"))
"""Registers a metric of a student."""
ENDS = time_grid(24, 2.0).float()  # Heun grid for ODE end points without a closed form
SET_RESAMPLES = 100  # of set-wise metrics; only their standard deviation is used
Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Clips:
    """Clips with their prompts.

    Attributes:
        latents: float32 `[N, F, C, H, W]`.
        text: one-hot components, float32 `[N, 1, K]`.
    """

    latents: Tensor
    text: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def vectors(self) -> Tensor:
        """Float64 `[N, F, d]`."""
        return self.latents.flatten(2).double()

    @property
    def component(self) -> Tensor:
        """Component that each prompt names, int64 `[N]`."""
        return self.text[:, 0].argmax(1)

    def first(self, count: int) -> "Clips":
        """The first of them."""
        return Clips(self.latents[:count], self.text[:count])

    def repeated(self, times: int) -> "Clips":
        """Each clip repeated so many times, consecutively."""
        repeat = torch.repeat_interleave
        return Clips(repeat(self.latents, times, 0), repeat(self.text, times, 0))


class View:
    """A law and what is compared with it.

    Args:
        network: the law as a network; `network.law` holds its parameters.
        seed: of the bootstrap and of all random draws of the metrics.
        shift, intervals: of the time grids.
        few_steps: of the sampler whose next frames are evaluated.
        reference: held-out clips of the law: the reference set, and the source of clean contexts.
        samples: generated clips.
        student: a causal network.
    """

    def __init__(
        self,
        network: ClosedForm,
        seed: int,
        shift: float,
        intervals: int,
        few_steps: int,
        reference: Clips | None = None,
        samples: Clips | None = None,
        student: nn.Module | None = None,
    ) -> None:
        self.network, self.law, self.seed = network, network.law, seed
        self.shift, self.intervals, self.few_steps = shift, intervals, few_steps
        self.reference, self.samples, self.student = reference, samples, student
        self.sizes = (1,) * self.law.frames

    @property
    def offers(self) -> tuple[str, ...]:
        """The inputs that this view has, by the names that metrics need."""
        there = {"samples": self.samples, "student": self.student}
        return offered([name for name, value in there.items() if value is not None])

    @cached_property
    def weights(self) -> np.ndarray:
        """Bootstrap counts `[R, N]` over the samples."""
        return resample_weights(len(self.samples), SET_RESAMPLES, self.seed)

    @property
    def grid(self) -> Tensor:
        """The scale's time grid, 1 .. 0, fp32."""
        return time_grid(self.intervals, self.shift).float()

    def generator(self, purpose: str) -> torch.Generator:
        """A random generator of its own for one purpose."""
        return torch.Generator().manual_seed(crc32(f"{self.seed}/{purpose}".encode()))

    def draw(self, count: int, purpose: str) -> Clips:
        """Fresh clips of the law, each with the prompt of its own component."""
        vectors, component, _ = self.law.draw(count, self.generator(purpose))
        text = torch.nn.functional.one_hot(component, self.law.components)[:, None].float()
        return Clips(self.latents(vectors), text)

    def noise(self, like: Tensor, purpose: str) -> Tensor:
        """Standard normal noise of a shape, fp32."""
        return torch.randn(like.shape, generator=self.generator(purpose))

    def even_noise(self, like: Tensor, purpose: str) -> Tensor:
        """Quasi-random normal noise (scrambled Sobol): means over few clips are near exact."""
        points = torch.quasirandom.SobolEngine(
            like[0].numel(), scramble=True, seed=crc32(f"{self.seed}/{purpose}".encode())
        )
        uniform = points.draw(len(like), dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
        return torch.special.ndtri(uniform).view_as(like).float()

    def latents(self, vectors: Tensor) -> Tensor:
        """`[N, F, d]` -> fp32 latents of height 1; the law accepts any height."""
        return vectors.unflatten(2, (self.network.config.in_channels, 1, -1)).float()

    def flow_map(self, x_t: Tensor, t: Tensor, clips: Clips) -> Tensor:
        """Exact flow map `[N, F, d]` of the AR ODE from latents `x_t` at `t` `[N, F]`, every frame
        conditioned on clean context.
        """
        given = self.law.conditional(clips.vectors, clips.component)
        return given.flow_map(x_t.flatten(2).double(), t.double(), steps=RUNGE_KUTTA_STEPS)

    def beside_past(self, network: nn.Module, clips: Clips) -> Velocity:
        """A network's velocity `v(x, t)` given clean context; `t` is a scalar or `[N, F]`."""

        def v(x: Tensor, t: Tensor) -> Tensor:
            level = t.to(x).expand(x.shape[:2])
            return forcing.teacher_forcing(
                network, x, level, clips.text, self.sizes, clean=clips.latents
            )

        return v

    def causal_end(self, noise: Tensor, clips: Clips) -> Tensor:
        """End point of the law's AR ODE given clean context, as latents."""
        return solve(self.beside_past(self.network, clips), noise, ENDS, solver="heun")[0]

    def bidirectional_end(self, noise: Tensor, text: Tensor) -> Tensor:
        """End point of the law's bidirectional ODE, as latents."""
        v = forcing.bidirectional_ode(self.network, text, torch.zeros_like(text[0]), 1.0)
        return solve(v, noise, ENDS, solver="heun")[0]


def offered(judged: Sequence[str]) -> tuple[str, ...]:
    """The inputs that a view offers to metrics when `judged` are given besides the law."""
    return ("law", *judged) if judged else ("law", "law_alone")


def root_mean_square(difference: Tensor) -> float:
    """Over everything."""
    return float(difference.double().square().mean().sqrt())
