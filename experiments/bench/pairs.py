"""One ODE trajectory of each teacher, as ``pairs`` makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from experiments.bench.clock import Protocol, measure
from experiments.bench.count import Work
from experiments.bench.device import Peak
from experiments.bench.random_models import Subject
from experiments.bench.row import Row, Task
from experiments.launch.hardware import accelerated, acceleration_of
from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.fast_past import FastPast
from lightning_modules.diffusion.flow import time_grid
from lightning_modules.diffusion.forcing import VelocityNetwork
from lightning_modules.diffusion.rollout import Solve, rollout, solve
from lightning_modules.networks.tally import Call, calls_of


def bench(subject: Subject, protocol: Protocol) -> Iterator[Task]:
    """Both teachers, with the scale's grid, guidance and batch."""
    settings = subject.tree["stages"]["pairs"]
    intervals, guidance, batch = (settings[key] for key in ("intervals", "guidance", "batch"))
    grid = time_grid(intervals, subject.tree["shift"])

    @cache
    def teacher() -> VelocityNetwork:
        launch = acceleration_of(subject.tree)
        return accelerated(subject.network(subject.tree["network"]), launch, subject.device)

    def row(past: str, peak: Peak) -> list[Row]:
        noise = torch.randn(batch, *subject.shape, device=subject.device)
        text, negative = subject.prompt(batch), subject.prompt()[0]
        action = trajectory(past, teacher(), noise, text, negative, subject.blocks, grid, guidance)
        with torch.no_grad(), subject.autocast():
            first_times = partial(getattr, teacher(), "first_times", 0)
            timing, _ = measure(action, subject.device, protocol, first_times)
        calls = calls_of_trajectory(past, subject.blocks, intervals, guidance)
        works = [subject.work(call, clips=batch) for call in calls]
        return [
            Row(
                f"pairs/{past}",
                timing,
                sum(map(peak.least_seconds, works)),
                sum(works, Work()),
                more={"clips": batch, "intervals": intervals, "past": past},
            )
        ]

    for past in ("causal", "bidirectional"):
        yield Task(f"pairs/{past}", partial(row, past))


def trajectory(
    past: str,
    net: VelocityNetwork,
    noise: Tensor,
    text: Tensor,
    negative: Tensor,
    sizes: Sequence[int],
    grid: Tensor,
    guidance: float,
) -> Callable[[], Any]:
    """Solver of a clip's ODE: block-wise given clean context (here noise), or all at once."""
    if past == "causal":
        beside = FastPast(net, text, negative, guidance, frames=sum(sizes))
        return lambda: rollout(beside.restart(text), noise, sizes, Solve(grid), truth=noise)
    v = forcing.bidirectional_ode(net, text, negative, guidance)
    return lambda: solve(v, noise, grid.float().to(noise.device))


def calls_of_trajectory(
    past: str, sizes: Sequence[int], intervals: int, guidance: float
) -> list[Call]:
    """Calls of the network for one clip, recorded by running the same solver on 1 x 1 latents."""
    shapes = (1, sum(sizes), 1, 1, 1), (1, 1, 1), (1, 1)
    noise, text, negative = map(torch.zeros, shapes)
    ode = sizes, time_grid(intervals, 1.0), guidance
    return calls_of(lambda net: trajectory(past, net, noise, text, negative, *ode)())
