"""What can be known to be wrong with a run before any run starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.launch.execute import verb_module
from experiments.runs.errors import told
from experiments.runs.recipe import RUN_NAME

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def problem(recipe: Mapping[str, Any], package: str = "experiments.verbs") -> str:
    """What is wrong with a resolved recipe, or "": its settings, or a folder that is not there."""
    try:
        verb_module(recipe["verb"], package).check(recipe)
        _require_folders(recipe["needs"])
    except Exception as error:
        return told(error)
    return ""


def _require_folders(needs: Mapping[str, str]) -> None:
    """Needs that are no runs must exist; what may be a hub id is looked up by who loads it.

    Raises:
        FileNotFoundError: names the need.
    """
    for role, where in needs.items():
        elsewhere = RUN_NAME.fullmatch(where) or _HUB_ID.fullmatch(where)
        if not elsewhere and not Path(where).exists():
            raise FileNotFoundError(f"needs.{role}: {where}: there is no such file or folder")
