"""The process of one row: its order comes on stdin, its rows go to stdout (`isolated.py`).

An order is the command's arguments, and the name of a task with the device's peak; without a name
it asks what the device is.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from experiments.bench import catalogue
from experiments.bench import device as devices
from experiments.bench.clock import Protocol, forget_peak
from experiments.bench.device import Peak
from experiments.bench.random_models import Subject
from experiments.bench.row import Task
from experiments.bench.sizes import scale_tree
from experiments.launch.ranks.die_with_parent import die_with_parent
from experiments.runs.environment import settle
from experiments.runs.recipe import Library, Resolver, parse_settings
from lightning_modules.networks.wan import attention


@dataclass(frozen=True)
class Arguments:
    """Of the bench, as the command line has them.

    Args:
        scale: one of ``experiments/scale``.
        settings: ``key=value``, over the scale's numbers.
        device: ``auto``, ``cpu`` or ``cuda``.
        warmup, repeats: of each measurement.
        few_steps: of the rollouts.
    """

    scale: str
    settings: tuple[str, ...]
    device: str
    warmup: int
    repeats: int
    few_steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.warmup < 0 or min(self.repeats, *self.few_steps) < 1:
            raise ValueError("--warmup must not be negative, --repeats and --few-steps at least 1")


class Bench:
    """The measurements of a scale on a device.

    Args:
        arguments: of the command.
        library: of the scales and recipes.

    Raises:
        ValueError: a wrong setting, or a missing device.
    """

    def __init__(self, arguments: Arguments, library: Library | None = None) -> None:
        for chatty in ("lightning.pytorch", "diffusers"):  # logs of devices, tips and casts
            logging.getLogger(chatty).setLevel(logging.ERROR)
        self._arguments, library = arguments, library or Library()
        self.settings = parse_settings(arguments.settings)
        tree = scale_tree(arguments.scale, self.settings, library)
        self.subject = Subject(tree, _device(arguments.device))
        self.kernel = tree["launch"].get("attention", "auto")
        attention.use(self.kernel, self.subject.device)
        self._resolver = Resolver(arguments.scale, library)

    def tasks(self) -> list[Task]:
        """What there is to measure, most valuable first."""
        protocol = Protocol(self._arguments.warmup, self._arguments.repeats)
        few_steps = self._arguments.few_steps
        return catalogue.tasks(self.subject, protocol, few_steps, self._resolver, self.settings)

    def about_device(self) -> dict[str, Any]:
        """The device, versions and peak throughput, measured now."""
        peak = devices.measure_peak(self.subject.device, self.subject.dtype)
        forget_peak(self.subject.device)
        return {
            "device": devices.describe(self.subject.device),
            "versions": devices.versions(),
            "peak": peak.as_dict(),
        }


def measured(task: Task, peak: Peak) -> Iterator[dict[str, Any]]:
    """Lines of an answer: a task's rows, then its error if it fails."""
    try:
        for row in task.rows(peak):
            yield {"row": row.as_dict(peak)}
    except Exception as error:  # compiler, memory, ...: other tasks go on
        traceback.print_exc()
        yield {"error": f"{type(error).__name__}: {error}"}


def obey(order: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    """Carry out an order."""
    bench = Bench(Arguments(**order["arguments"]))
    if "task" not in order:
        say({"row": bench.about_device()})
        return
    task = next(task for task in bench.tasks() if task.name == order["task"])
    for line in measured(task, Peak(**order["peak"])):
        say(line)


def _device(name: str) -> torch.device:
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ValueError("--device cuda: torch sees no GPU here; use cpu, or auto")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def main() -> None:
    """Read the order; nothing but answers is printed on stdout."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    order = json.loads(sys.stdin.read())
    obey(order, lambda line: answers.write(json.dumps(line, allow_nan=False) + "\n"))


if __name__ == "__main__":
    settle()
    main()
