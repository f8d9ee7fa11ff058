"""Worlds: data distributions with their sources of clips and prompts, encoders and evaluation.

A world is a package in this folder. It declares its modules by name: ``SOURCES`` holds the values
of a recipe's ``curate.source``, ``JUDGES`` the need of a score recipe that selects the evaluation.
Reading these tables imports no torch.
"""

from importlib import import_module
from pkgutil import iter_modules

OF_NO_WORLD = {"timed": "experiments.bench.speed"}
"""Evaluations that are the same in every world."""


def sources() -> dict[str, str]:
    """Value of ``curate.source`` -> the module with its ``plan``."""
    return _said("SOURCES")


def judges() -> dict[str, str]:
    """Need that selects the evaluation -> the module with its ``check`` and ``run``."""
    return _said("JUDGES") | OF_NO_WORLD


def _said(what: str) -> dict[str, str]:
    worlds = [import_module(f"{__name__}.{each.name}") for each in iter_modules(__path__)]
    return {
        name: f"{world.__name__}.{module}"
        for world in worlds
        for name, module in getattr(world, what).items()
    }
