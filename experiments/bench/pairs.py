"""One ODE trajectory of each teacher, as ``pairs`` makes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from experiments.bench import count
from experiments.bench.built import Subject
from experiments.bench.clock import Protocol, measure
from experiments.bench.count import Work
from experiments.bench.device import Peak
from experiments.bench.rows import Row
from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.flow import time_grid
from lightning_modules.diffusion.rollout import Past, Solve, rollout, solve


def bench(subject: Subject, peak: Peak, protocol: Protocol) -> Iterator[Row]:
    """Both teachers, with the scale's grid, guidance and batch."""
    teacher = subject.network(subject.tree["network"])
    settings = subject.tree["stages"]["pairs"]
    intervals, guidance, batch = (settings[key] for key in ("intervals", "guidance", "batch"))
    grid = time_grid(intervals, subject.tree["shift"])
    text, negative = subject.prompt(batch), subject.prompt()[0]
    noise, truth = (torch.randn(batch, *subject.shape, device=subject.device) for _ in range(2))

    @torch.inference_mode()
    def causal() -> None:
        with subject.autocast():
            past = Past(teacher, text, negative, guidance)
            rollout(past, noise, subject.blocks, Solve(grid), truth=truth)

    @torch.inference_mode()
    def bidirectional() -> None:
        with subject.autocast():
            v = forcing.bidirectional_ode(teacher, text, negative, guidance)
            solve(v, noise, grid.float().to(subject.device))

    branches = 1 if guidance == 1 else 2
    block_wise = count.rollout(subject.blocks, [intervals] * len(subject.blocks))
    whole = [count.bidirectional(sum(subject.blocks))] * intervals
    for past, action, passes in (
        ("causal", causal, block_wise),
        ("bidirectional", bidirectional, whole),
    ):
        timing, _ = measure(action, subject.device, protocol)
        works = [_work(subject, step, batch) for step in passes]
        yield Row(
            f"pairs, {past}",
            timing,
            branches * sum(map(peak.least_seconds, works)),
            sum(works, Work()) * branches,
            more={"clips": batch, "intervals": intervals, "past": past},
        )


def _work(subject: Subject, step: count.Pass, batch: int) -> Work:
    return count.work(
        subject.size(),
        replace(step, batch=batch),
        subject.tokens,
        subject.text_tokens,
        subject.value_bytes,
    )
