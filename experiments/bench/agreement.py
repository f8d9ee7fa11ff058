"""Whether every way to make the calls of a rollout gives the clip of the plain one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from experiments.bench.device import Peak
from experiments.bench.random_models import Subject
from experiments.bench.rollout import FIRST_STEPS, VARIANTS, variants
from experiments.bench.row import Facts, Task
from experiments.launch.hardware import Launch, accelerated
from lightning_modules.diffusion.fast_past import FastPast
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import FewSteps, Past, few_step_times, rollout

STEPS = 2
CLIPS = {"cuda_graphs": 3}  # plain, captured, replayed (`networks/wan/cuda_graphs.py`); else one


def bench(subject: Subject) -> Iterator[Task]:
    """One row for all of them."""
    yield Task("agreement", partial(_row, subject))


def _row(subject: Subject, peak: Peak) -> list[Facts]:
    """Relative distance of each way's clips from the plain ones; below 0.02 in bfloat16."""
    with torch.no_grad(), subject.autocast():
        return [Facts("agreement", distances(subject))]


def distances(subject: Subject) -> dict[str, Any]:
    """For each of `VARIANTS` on this device, ``|clip - plain| / |plain|`` of each clip."""
    random = Randomness("bench", 0, ["clip"], subject.device)
    noise, text = random.normal("noise", subject.shape), subject.prompt()
    times = few_step_times(subject.blocks, STEPS, FIRST_STEPS, subject.tree["shift"])
    network, frames = subject.network(subject.tree["network"]), sum(subject.blocks)

    def clip(past: Past) -> Tensor:
        denoise = FewSteps(times, lambda step: random.normal(f"renoise/{step}", subject.shape))
        return rollout(past, noise, subject.blocks, denoise)

    plain = clip(Past(network, text))
    found: dict[str, Any] = {"finite": bool(plain.isfinite().all())}
    for name, how, options in variants(subject.device):
        if how == VARIANTS[0][0]:
            continue  # the plain one itself
        net = accelerated(network, Launch(**options), subject.device)
        past = FastPast(net, text, frames=frames, commit=how)
        count = max((CLIPS.get(option, 1) for option in options), default=1)
        clips = [clip(past.restart(text)) for _ in range(count)]
        found[name] = [_distance(made, plain) for made in clips]
    return found


def _distance(made: Tensor, plain: Tensor) -> float | None:
    """None, which JSON has, where it is no number."""
    found = float((made - plain).norm() / plain.norm())
    return found if isfinite(found) else None
