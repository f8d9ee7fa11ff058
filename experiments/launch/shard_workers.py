"""A shard set by several processes: the verb's, one for each further device, and any that join.

A helper is ``python -m experiments join <run folder>``; it makes tars that nobody else is making
until none is left (``shard_work.py``), and may run on any machine that sees the folder.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from datamodules.shards.work import ShardMaker, Work
from experiments.launch.execute import verb_module
from experiments.launch.hardware import Launch, launch_of
from experiments.launch.ranks.die_with_parent import die_with_parent
from experiments.runs.folder import RunFolder

log = logging.getLogger(__name__)
Plan = Callable[[dict[str, Any], RunFolder], Work]


def make_together(plan: Plan, recipe: dict[str, Any], folder: RunFolder) -> None:
    """Make ``folder/shards`` with ``launch.devices`` processes, on from where it stopped."""
    maker = ShardMaker(plan(recipe, folder), folder)
    with _helpers(folder, _devices(launch_of(recipe))[1:]):
        maker.make_all()
    maker.complete()


def join(folder: RunFolder, parent: int | None = None) -> None:
    """Help with a run that is, or will be, made by another process.

    Args:
        folder: of a run that makes shards.
        parent: the process that this one shall not outlive.

    Raises:
        ValueError: the run's verb makes no shards.
    """
    if parent is not None:
        die_with_parent(parent)
    if folder.done:
        log.info("%s is done", folder.name)
        return
    plan = getattr(verb_module(folder.recipe["verb"]), "plan", None)
    if plan is None:
        raise ValueError(
            f"{folder.path}: nobody can join a {folder.recipe['verb']}, only what makes shards;"
            f" python -m experiments {folder.recipe['verb']} {folder.path} goes on with it"
        )
    made = ShardMaker(plan(folder.recipe, folder), folder).help()
    log.info("%s: made %d shards; none is left to begin", folder.name, made)


@contextmanager
def _helpers(folder: RunFolder, devices: Sequence[str]) -> Iterator[None]:
    """Further processes of this machine, one a device. If one dies, the others do its work."""
    words = ["-m", "experiments", "join", str(folder.path), "--of", str(os.getpid())]
    command = [sys.executable, *words]
    running = [
        subprocess.Popen(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": device})
        for device in devices
    ]
    try:
        yield
    finally:
        for helper in running:
            helper.terminate()
        for helper in running:
            helper.wait()


def _devices(launch: Launch) -> list[str]:
    """CUDA's names of as many devices as are wanted; empty ones for processes of CPUs.

    Raises:
        ValueError: fewer are there.
    """
    if launch.accelerator == "cpu" or not torch.cuda.is_available():
        return [""] * launch.devices
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if visible != [""] else list(map(str, range(torch.cuda.device_count())))
    if len(names) < launch.devices:
        raise ValueError(
            f"launch.devices: {launch.devices} are wanted, {len(names)} are there"
            f" ({', '.join(names)}); lower it, or set launch.accelerator=cpu"
        )
    return names[: launch.devices]
