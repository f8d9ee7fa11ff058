"""One ODE trajectory of each teacher, as ``pairs`` makes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial

import torch

from experiments.bench import count
from experiments.bench.clock import Protocol, measure
from experiments.bench.count import Work
from experiments.bench.device import Peak
from experiments.bench.random_models import Subject
from experiments.bench.report import Row, Task
from experiments.launch.hardware import Launch, accelerated
from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.fast_past import FastPast
from lightning_modules.diffusion.flow import time_grid
from lightning_modules.diffusion.forcing import VelocityNetwork
from lightning_modules.diffusion.rollout import Solve, rollout, solve

HURRY = ("compile", "cuda_graphs")  # of ``launch``


def bench(subject: Subject, peak: Peak, protocol: Protocol) -> Iterator[Task]:
    """Both teachers, with the scale's grid, guidance and batch."""
    settings = subject.tree["stages"]["pairs"]
    intervals, guidance, batch = (settings[key] for key in ("intervals", "guidance", "batch"))
    grid = time_grid(intervals, subject.tree["shift"])

    @cache
    def teacher() -> VelocityNetwork:
        launch = Launch(**{key: subject.tree["launch"].get(key, False) for key in HURRY})
        return accelerated(subject.network(subject.tree["network"]), launch, subject.device)

    def row(past: str, passes: list[count.Pass]) -> list[Row]:
        text, negative = subject.prompt(batch), subject.prompt()[0]
        noise, truth = (torch.randn(batch, *subject.shape, device=subject.device) for _ in range(2))
        frames = sum(subject.blocks)
        beside = FastPast(teacher(), text, negative, guidance, frames=frames)

        def causal() -> None:
            rollout(beside.restart(text), noise, subject.blocks, Solve(grid), truth=truth)

        def bidirectional() -> None:
            v = forcing.bidirectional_ode(teacher(), text, negative, guidance)
            solve(v, noise, grid.float().to(subject.device))

        action = causal if past == "causal" else bidirectional
        with torch.no_grad(), subject.autocast():
            timing, _ = measure(action, subject.device, protocol)
        works = [_work(subject, step, batch) for step in passes]
        branches = 1 if guidance == 1 else 2
        return [
            Row(
                f"pairs, {past}",
                timing,
                branches * sum(map(peak.least_seconds, works)),
                sum(works, Work()) * branches,
                more={"clips": batch, "intervals": intervals, "past": past},
            )
        ]

    block_wise = count.rollout(subject.blocks, [intervals] * len(subject.blocks))
    whole = [count.bidirectional(sum(subject.blocks))] * intervals
    for past, passes in (("causal", block_wise), ("bidirectional", whole)):
        yield Task(f"pairs, {past}", partial(row, past, passes))


def _work(subject: Subject, step: count.Pass, batch: int) -> Work:
    return count.work(
        subject.size(),
        replace(step, batch=batch),
        subject.tokens,
        subject.text_tokens,
        subject.value_bytes,
    )
