"""What the `law.*` metrics look at: a law, and what there is of clips, a student and true pasts.

Frames are vectors: clips are float64 `[N, F, d]`. Networks speak latents `[N, F, C, H, W]`; `View`
translates. Chance comes from one generator a metric, so that no metric moves another's numbers.
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
"""Registers a fact of the law; asked where nothing else is judged, so that it is measured once."""
of_samples = partial(
    metric, scope="set", unit="", higher_is_better=False, needs=("law", "samples"), kind="exact"
)
"""Registers a metric of generated clips."""
of_student = partial(of_samples, needs=("law", "student"))
"""Registers a metric of a student."""
ENDS = time_grid(24, 2.0).float()  # by Heun, the ends of ODEs that have no closed form
SET_RESAMPLES = 100  # of set-wise metrics; their spread, not their tails, is used
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
        """What the prompts ask for, int64 `[N]`."""
        return self.text[:, 0].argmax(1)

    def first(self, count: int) -> "Clips":
        """The first of them."""
        return Clips(self.latents[:count], self.text[:count])

    def repeated(self, times: int) -> "Clips":
        """Each one so many times, in a row."""
        repeat = torch.repeat_interleave
        return Clips(repeat(self.latents, times, 0), repeat(self.text, times, 0))


class View:
    """A law beside what is compared with it.

    Args:
        network: the law as a network; `network.law` are its numbers.
        seed: of the bootstrap and of all that is drawn here.
        shift, intervals: of the time grids.
        few_steps: of the sampler whose next frames are looked at.
        reference: held-out clips of the law, for clips to be compared with and as true pasts.
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
        """What metrics may need of this view."""
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
        """Chance for one purpose."""
        return torch.Generator().manual_seed(crc32(f"{self.seed}/{purpose}".encode()))

    def draw(self, count: int, purpose: str) -> Clips:
        """Fresh clips of the law, each under its own component's prompt."""
        vectors, component, _ = self.law.draw(count, self.generator(purpose))
        text = torch.nn.functional.one_hot(component, self.law.components)[:, None].float()
        return Clips(self.latents(vectors), text)

    def noise(self, like: Tensor, purpose: str) -> Tensor:
        """Standard normal noise of a shape, fp32."""
        return torch.randn(like.shape, generator=self.generator(purpose))

    def even_noise(self, like: Tensor, purpose: str) -> Tensor:
        """The same, spread evenly (scrambled Sobol points): means over few clips are near exact."""
        points = torch.quasirandom.SobolEngine(
            like[0].numel(), scramble=True, seed=crc32(f"{self.seed}/{purpose}".encode())
        )
        uniform = points.draw(len(like), dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
        return torch.special.ndtri(uniform).view_as(like).float()

    def latents(self, vectors: Tensor) -> Tensor:
        """`[N, F, d]` -> latents fp32 of height 1, which the law takes as well as any."""
        return vectors.unflatten(2, (self.network.config.in_channels, 1, -1)).float()

    def flow_map(self, x_t: Tensor, t: Tensor, clips: Clips) -> Tensor:
        """The exact end `[N, F, d]` of the AR ODE through latents `x_t` at `t` `[N, F]`, every
        frame beside its true past.
        """
        given = self.law.conditional(clips.vectors, clips.component)
        return given.flow_map(x_t.flatten(2).double(), t.double(), steps=RUNGE_KUTTA_STEPS)

    def beside_past(self, network: nn.Module, clips: Clips) -> Velocity:
        """A network's velocity `v(x, t)` beside the true past; `t` is a scalar or `[N, F]`."""

        def v(x: Tensor, t: Tensor) -> Tensor:
            level = t.to(x).expand(x.shape[:2])
            return forcing.teacher_forcing(
                network, x, level, clips.text, self.sizes, clean=clips.latents
            )

        return v

    def causal_end(self, noise: Tensor, clips: Clips) -> Tensor:
        """Latents at the end of the law's AR ODE beside the true past."""
        return solve(self.beside_past(self.network, clips), noise, ENDS, solver="heun")[0]

    def bidirectional_end(self, noise: Tensor, text: Tensor) -> Tensor:
        """Latents at the end of the law's bidirectional ODE."""
        v = forcing.bidirectional_ode(self.network, text, torch.zeros_like(text[0]), 1.0)
        return solve(v, noise, ENDS, solver="heun")[0]


def offered(judged: Sequence[str]) -> tuple[str, ...]:
    """What a view of a law can be asked for when so much is `judged` beside it."""
    return ("law", *judged) if judged else ("law", "law_alone")


def root_mean_square(difference: Tensor) -> float:
    """Over everything."""
    return float(difference.double().square().mean().sqrt())
