"""``score``: evaluate samples or a trained student by the metrics of one suite.

The recipe's needs select the suite: a ``probe`` evaluates clips of the tiny world (`world.*`), a
``law`` known in closed form gives exact references for clips and students (`law.*`), a ``room``
compares walks with their renderer (`room.*`), a ``benchmark`` lays videos out for external programs
(`vbench.*`), and a ``timed`` student is measured for its speed (`speed.*`).

Results: scores.jsonl, per_clip.npz, curves.json (see `metrics/records.py`).
"""

import importlib
from types import ModuleType
from typing import Any

from experiments.launch.hardware import launch_of, settle
from experiments.runs.folder import RunFolder
from experiments.worlds import judges


def check(recipe: dict[str, Any]) -> None:
    """Refuse a recipe whose settings do not fit, before anything is loaded."""
    _suite(recipe).check(recipe)
    launch_of(recipe)


def run(recipe: dict[str, Any], folder: RunFolder) -> None:
    """Score as ``recipe["score"]`` says; the results lie in ``folder``."""
    check(recipe)
    settle(recipe)  # a GPU is used where speed is timed, which prepares it
    _suite(recipe).run(recipe, folder)


def _suite(recipe: dict[str, Any]) -> ModuleType:
    known = judges()
    found = [module for role, module in known.items() if role in recipe["needs"]]
    if len(found) != 1:
        raise ValueError(
            f"needs: a score needs one of {', '.join(known)}, which says what it is judged by;"
            f" this recipe needs {', '.join(recipe['needs']) or 'nothing'}"
        )
    return importlib.import_module(found[0])
