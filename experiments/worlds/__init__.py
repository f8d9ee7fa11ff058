"""Worlds: where clips and prompts come from, how they are encoded, and what judges the samples.

A world is a package in this folder. It says itself, as names of its own modules, which sources it
has (``SOURCES``: what a recipe's ``curate.source`` names) and what it judges by (``JUDGES``: the
need of a score that decides for it). Asking imports no torch.
"""

from importlib import import_module
from pkgutil import iter_modules


def sources() -> dict[str, str]:
    """What ``curate.source`` may name -> the module with its ``plan``."""
    return _said("SOURCES")


def judges() -> dict[str, str]:
    """The need that decides how a score is made -> the module with its ``check`` and ``run``."""
    return _said("JUDGES")


def _said(what: str) -> dict[str, str]:
    worlds = [import_module(f"{__name__}.{each.name}") for each in iter_modules(__path__)]
    return {
        name: f"{world.__name__}.{module}"
        for world in worlds
        for name, module in getattr(world, what).items()
    }
