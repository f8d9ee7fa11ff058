"""A shard set by several processes: the verb's, one for each further device, and any that join.

A helper is ``python -m experiments.<verb> <run folder>``; it makes tars that nobody else is making
until none is left (``shard_work.py``), and may run on any machine that sees the folder.
"""

import argparse
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from experiments.folder import RunFolder
from experiments.launch.hardware import Launch, launch_of
from experiments.launch.parent import end_with_parent
from experiments.making.shard_work import ShardMaker, Work

log = logging.getLogger(__name__)
Plan = Callable[[dict[str, Any], RunFolder], Work]


def make_together(plan: Plan, recipe: dict[str, Any], folder: RunFolder) -> None:
    """Make ``folder/shards`` with ``launch.devices`` processes, on from where it stopped."""
    maker = ShardMaker(plan(recipe, folder), folder)
    with _helpers(folder, _devices(launch_of(recipe))[1:]):
        maker.make_all()
    maker.complete()


def help_with(plan: Plan, arguments: Sequence[str] | None = None) -> None:
    """A helper's command line: help with a run that is, or will be, made by another process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="folder of a run that makes shards")
    parser.add_argument("--of", type=int, help="process that this one shall not outlive")
    chosen = parser.parse_args(arguments)
    if chosen.of is not None:
        end_with_parent(chosen.of)
    folder = RunFolder(chosen.folder)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    if folder.done:
        log.info("%s is done", folder.name)
        return
    made = ShardMaker(plan(folder.recipe, folder), folder).help()
    log.info("%s: made %d shards; none is left to begin", folder.name, made)


@contextmanager
def _helpers(folder: RunFolder, devices: Sequence[str]) -> Iterator[None]:
    """Further processes of this machine, one a device. If one dies, the others do its work."""
    module = f"experiments.{folder.recipe['verb']}"
    command = [sys.executable, "-m", module, str(folder.path), "--of", str(os.getpid())]
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
