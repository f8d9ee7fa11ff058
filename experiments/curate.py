"""``curate``: make shards: clips, prompts or videos of a source, encoded, with a manifest.

Encoding needs networks, so that no datamodule does it. A source is a module of
``experiments.sources``; the signature of its ``curate`` says what a recipe may set.
"""

import importlib
from types import ModuleType
from typing import Any

from experiments.bind import bind
from experiments.folder import RunFolder
from experiments.hardware import launch_of, prepare
from experiments.layers import nearest

GIVEN = {"folder", "seed"}
SOURCES = ("closed_form", "moving_digits")


def check(recipe: dict[str, Any]) -> None:
    """Refuse a recipe whose settings do not fit, before anything is made."""
    source = _source(recipe)
    source.check(_settings(recipe, source))
    launch_of(recipe)


def run(recipe: dict[str, Any], folder: RunFolder) -> None:
    """Write ``folder/shards`` as ``recipe["curate"]`` says."""
    check(recipe)
    prepare(recipe)
    source = _source(recipe)
    source.curate(folder=folder, seed=recipe["seed"], **_settings(recipe, source))


def _source(recipe: dict[str, Any]) -> ModuleType:
    name = recipe["curate"].get("source")
    if name not in SOURCES:
        raise ValueError(
            f"curate.source: {name!r} is none of {', '.join(SOURCES)}{nearest(str(name), SOURCES)}"
        )
    return importlib.import_module(f"experiments.sources.{name}")


def _settings(recipe: dict[str, Any], source: ModuleType) -> dict[str, Any]:
    own = {key: value for key, value in recipe["curate"].items() if key != "source"}
    return bind(source.curate, own, GIVEN, "curate")
