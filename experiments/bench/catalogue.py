"""The rows that there are, most valuable first, and a choice among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

from experiments.bench import agreement, attention, pairs, predict, rollout, train, vae
from experiments.bench.clock import Protocol
from experiments.bench.random_models import Subject
from experiments.bench.row import Task
from experiments.runs.config import nearest
from experiments.runs.recipe import Resolver

VALUE = (
    "rollout/2/fused+compile+cuda_graphs",  # the fastest form, and the paper's number of steps
    "agreement",
    "rollout/2/separate",
    "vae/decode",
    *(f"train/{predict.STAGE}{init}" for init in predict.PRINTED),
    "pairs/*",  # with them, all columns of Table 2 are there
    "rollout/2/fused+cuda_graphs",
    "attention/*",
    "rollout/*/fused+compile+cuda_graphs",
    "vae/*",
    "rollout/2/*",
    "rollout/*/fused+cuda_graphs",
    "rollout/*",
    "train/*",
)
"""Patterns of names. A row stands where the first one matches it; the others come last."""


def tasks(
    subject: Subject,
    protocol: Protocol,
    few_steps: Sequence[int],
    resolver: Resolver,
    settings: Mapping[str, Any],
) -> list[Task]:
    """Every measurement, most valuable first; nothing is set up yet.

    Args:
        subject: sizes and device.
        protocol: of each measurement.
        few_steps: of the rollouts.
        resolver: of the recipes whose training steps are timed.
        settings: of the command line.
    """
    found = [
        *agreement.bench(subject),
        *attention.bench(subject, protocol),
        *rollout.bench(subject, protocol, few_steps),
        *train.bench(subject, protocol, resolver, settings),
        *pairs.bench(subject, protocol),
        *vae.bench(subject, protocol),
    ]
    return sorted(found, key=lambda task: _value(task.name))  # stable


def chosen(found: Sequence[Task], wanted: Sequence[str]) -> list[Task]:
    """Those whose name is wanted, or lies below a wanted one as in a folder; in the order found.

    Raises:
        ValueError: nothing has such a name; says the nearest, and what there is.
    """
    for name in wanted:
        if not any(_below(task.name, name) for task in found):
            names = [task.name for task in found]
            known = dict.fromkeys([*_parents(names), *names])
            raise ValueError(
                f"--rows: there is no {name!r} on this device{nearest(name, known)}"
                f" (there are: {', '.join(names)})"
            )
    return [task for task in found if any(_below(task.name, name) for name in wanted)]


def _value(name: str) -> int:
    return next((at for at, pattern in enumerate(VALUE) if fnmatch(name, pattern)), len(VALUE))


def _below(name: str, parent: str) -> bool:
    return f"{name}/".startswith(f"{parent.rstrip('/')}/")


def _parents(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        parts = name.split("/")
        yield from ("/".join(parts[:depth]) for depth in range(1, len(parts)))
