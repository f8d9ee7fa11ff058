"""``curate``: make shards: clips, prompts or videos of a source, encoded, with a manifest.

Encoding needs networks, so that no datamodule does it. A source is a module of
``experiments.sources``; the signature of its ``plan`` says what a recipe may set.

With ``launch.devices`` more than one, that many processes make a run's shards together. Others may
join from other machines that see the run folder, by

    python -m experiments.curate <run folder>

in an array of jobs, say: each makes tars that nobody else is making, until none is left. The set is
completed by ``python -m experiments curate <run folder>``, which also does all that is not done.
Whether claims are seen by other machines depends on the file system (NFS 4 and Lustre mounted with
``flock`` do); where they are not, work is done twice, and the set is the same.
"""

import argparse
import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from experiments.bind import bind
from experiments.folder import RunFolder
from experiments.hardware import Launch, launch_of, prepare
from experiments.layers import nearest
from experiments.shard_work import ShardMaker, Work

log = logging.getLogger(__name__)
GIVEN = {"folder", "seed"}
SOURCES = ("closed_form", "lmdb", "moving_digits", "openvid", "vidprom")


def check(recipe: dict[str, Any]) -> None:
    """Refuse a recipe whose settings do not fit, before anything is made."""
    source = _source(recipe)
    source.check(_settings(recipe, source))
    launch_of(recipe)


def run(recipe: dict[str, Any], folder: RunFolder) -> None:
    """Write ``folder/shards`` as ``recipe["curate"]`` says; go on where it was interrupted."""
    maker = ShardMaker(_plan(recipe, folder), folder)
    with _helpers(folder, _devices(launch_of(recipe))[1:]):
        maker.make_all()
    maker.complete()


def main(arguments: Sequence[str] | None = None) -> None:
    """Help with a run that is, or will be, made by another process."""
    parser = argparse.ArgumentParser(prog="python -m experiments.curate", description=__doc__)
    parser.add_argument("folder", help="run folder of a recipe of the verb curate")
    folder = RunFolder(parser.parse_args(arguments).folder)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    if folder.done:
        log.info("%s is done", folder.name)
        return
    made = ShardMaker(_plan(folder.recipe, folder), folder).help()
    log.info("%s: made %d shards; none is left to begin", folder.name, made)


def _plan(recipe: dict[str, Any], folder: RunFolder) -> Work:
    check(recipe)
    prepare(recipe)
    source = _source(recipe)
    return source.plan(folder=folder, seed=recipe["seed"], **_settings(recipe, source))


@contextmanager
def _helpers(folder: RunFolder, devices: Sequence[str]) -> Iterator[None]:
    """Further processes of this machine, one a device. If one dies, the others do its work."""
    command = [sys.executable, "-m", "experiments.curate", str(folder.path)]
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
    """CUDA's names of as many devices as are wanted and there; empty ones for processes of CPUs."""
    if launch.accelerator == "cpu" or not torch.cuda.is_available():
        return [""] * launch.devices
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if visible != [""] else list(map(str, range(torch.cuda.device_count())))
    return names[: launch.devices]


def _source(recipe: dict[str, Any]) -> ModuleType:
    name = recipe["curate"].get("source")
    if name not in SOURCES:
        raise ValueError(
            f"curate.source: {name!r} is none of {', '.join(SOURCES)}{nearest(str(name), SOURCES)}"
        )
    return importlib.import_module(f"experiments.sources.{name}")


def _settings(recipe: dict[str, Any], source: ModuleType) -> dict[str, Any]:
    own = {key: value for key, value in recipe["curate"].items() if key != "source"}
    return bind(source.plan, own, GIVEN, "curate")


if __name__ == "__main__":
    main()
