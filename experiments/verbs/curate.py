"""``curate``: make shards: clips, prompts or videos of a source, encoded, with a manifest.

Encoding needs networks, so that no datamodule does it. A source is a module of
``experiments/worlds``; the signature of its ``plan`` says what a recipe may set.

With ``launch.devices`` more than one, that many processes make a run's shards together. Others may
join from other machines that see the run folder, by

    python -m experiments join <run folder>

in an array of jobs, say: each makes tars that nobody else is making, until none is left. The set is
completed by ``python -m experiments curate <run folder>``, which also does all that is not done.
Whether claims are seen by other machines depends on the file system (NFS 4 and Lustre mounted with
``flock`` do); where they are not, work is done twice, and the set is the same.
"""

import importlib
from types import ModuleType
from typing import Any

from datamodules.shards.work import Work
from experiments.launch.hardware import launch_of, prepare
from experiments.launch.shard_workers import make_together
from experiments.runs.config import nearest
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from experiments.worlds import sources

GIVEN = {"folder", "seed"}


def check(recipe: dict[str, Any]) -> None:
    """Refuse a recipe whose settings do not fit, before anything is made."""
    source = _source(recipe)
    source.check(_settings(recipe, source))
    launch_of(recipe)


def run(recipe: dict[str, Any], folder: RunFolder) -> None:
    """Write ``folder/shards`` as ``recipe["curate"]`` says; go on where it was interrupted."""
    make_together(plan, recipe, folder)


def plan(recipe: dict[str, Any], folder: RunFolder) -> Work:
    """What is to be made; the source is looked at, nothing is encoded yet."""
    check(recipe)
    prepare(recipe)
    source = _source(recipe)
    return source.plan(folder=folder, seed=recipe["seed"], **_settings(recipe, source))


def _source(recipe: dict[str, Any]) -> ModuleType:
    name = recipe["curate"].get("source")
    known = sources()
    if name not in known:
        raise ValueError(
            f"curate.source: {name!r} is none of {', '.join(known)}{nearest(str(name), known)}"
        )
    return importlib.import_module(known[name])


def _settings(recipe: dict[str, Any], source: ModuleType) -> dict[str, Any]:
    own = {key: value for key, value in recipe["curate"].items() if key != "source"}
    return bind(source.plan, own, GIVEN, "curate")
