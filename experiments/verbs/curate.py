"""``curate``: encode clips, prompts or videos of a source into shards with a manifest.

Encoding needs networks, hence it is a verb and not part of a datamodule. A source is a module of
``experiments/worlds``; the signature of its ``plan`` defines the recipe's settings.

``launch.nodes`` x ``launch.devices`` processes make a run's shards together, each the shards that
no other has claimed, until none is left; rank 0 completes the set. Processes elsewhere that share
the run folder can join, for instance in a job array, by

    python -m experiments join <run folder>

Claims are file locks and reach other machines on NFS 4 and on Lustre mounted with ``flock``;
elsewhere some shards may be made twice, with the same result.
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
    """Write ``folder/shards`` as ``recipe["curate"]`` says; resumes after an interruption."""
    make_together(plan, recipe, folder)


def plan(recipe: dict[str, Any], folder: RunFolder) -> Work:
    """Plan of the shard set: the source is inspected, nothing is encoded yet."""
    check(recipe)
    prepare(recipe)
    source = _source(recipe)
    return source.plan(folder=folder, seed=recipe["seed"], **_settings(recipe, source))


def _source(recipe: dict[str, Any]) -> ModuleType:
    name = str(recipe.get("curate", {}).get("source"))
    known = sources()
    if name not in known:
        raise ValueError(
            f"curate.source: {name!r} is none of {', '.join(known)}{nearest(name, known)}"
        )
    return importlib.import_module(known[name])


def _settings(recipe: dict[str, Any], source: ModuleType) -> dict[str, Any]:
    own = {key: value for key, value in recipe["curate"].items() if key != "source"}
    return bind(source.plan, own, GIVEN, "curate")
