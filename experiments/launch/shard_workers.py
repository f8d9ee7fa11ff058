"""Shard workers: processes that make one shard set, one per device, and any that join.

A worker makes shards that no other worker has claimed until none is left
(``datamodules/shards/work.py``), on any machine that sees the folder; it is lost with no more than
the shard it is making. The processes of a run are the leader, which holds the run's lock and
completes the set, and one on each other node; both start a worker (``python -m experiments join
<run folder>``) for each further device of their node. Where ``srun`` or ``torchrun`` starts a
process per device, each of these is a worker. A leader that is lost is replaced (``execute.py``).
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
END_WITHIN_S = 30.0  # to abandon a shard; another process makes it again
Plan = Callable[[dict[str, Any], RunFolder], Work]


def make_together(plan: Plan, recipe: dict[str, Any], folder: RunFolder) -> None:
    """Make or resume ``folder/shards`` with the workers of this node; rank 0 completes the set."""
    maker = ShardMaker(plan(recipe, folder), folder)
    leads = int(os.environ.get("RANK", 0)) == 0
    with _workers(folder, _further_devices(launch_of(recipe))):
        if leads:
            maker.make_all()
        else:
            log.info("made %d shards; none is left to begin", maker.help())
    if leads:
        maker.complete()


def join(folder: RunFolder, parent: int | None = None) -> None:
    """Work on a run that another process executes, now or later.

    Args:
        folder: of a run that makes shards.
        parent: process id; this process is killed when that one ends.

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
            f"{folder.path}: a {folder.recipe['verb']} makes no shards and cannot be joined;"
            f" {folder.command} resumes it"
        )
    made = ShardMaker(plan(folder.recipe, folder), folder).help()
    log.info("%s: made %d shards; none is left to begin", folder.name, made)


@contextmanager
def _workers(folder: RunFolder, devices: Sequence[str]) -> Iterator[None]:
    """Further workers on this machine, one per device. If one dies, the others do its work."""
    arguments = ["-m", "experiments", "join", str(folder.path), "--of", str(os.getpid())]
    command = [sys.executable, *arguments]
    running = [
        subprocess.Popen(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": device})
        for device in devices
    ]
    try:
        yield
    finally:
        for worker in running:
            worker.terminate()
        for worker in running:
            _end(worker)


def _end(worker: subprocess.Popen[bytes]) -> None:
    """Wait for a worker that was asked to end; kill one that cannot, for its shard is not lost."""
    try:
        worker.wait(END_WITHIN_S)
    except subprocess.TimeoutExpired:
        log.warning("worker %d does not end within %g s and is killed", worker.pid, END_WITHIN_S)
        worker.kill()
        worker.wait()


def _further_devices(launch: Launch) -> list[str]:
    """The devices of this node that have no worker yet; empty strings for CPU processes.

    Raises:
        ValueError: there are fewer than ``launch.devices``.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:  # each has one: a launcher started them
        return []
    return _devices(launch)[1:]


def _devices(launch: Launch) -> list[str]:
    """The ids of ``launch.devices`` CUDA devices; empty strings for CPU processes."""
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
