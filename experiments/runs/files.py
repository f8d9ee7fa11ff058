"""The YAML files of recipes and scales, each on top of the one that it ``extends``.

A scale file holds only the differences and may not add keys. A recipe may: what two recipes share
is in one of them, or in ``recipes/shared/`` if it is not a recipe itself::

    extends: shared/fit           # a recipe, by its path in the folder
    from: stages.causal_ode       # ${from.steps} means ${stages.causal_ode.steps} of the scale
    needs:
      data: {recipe: causal_pairs}
    stage: {class: CausalODE}     # merged into the other's section; a need is replaced as a whole

``from`` of the topmost file applies. Both keys are removed before anything is resolved.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiments.runs.config import extend, nearest, put
from experiments.runs.yaml_reader import read_yaml

Tree = dict[str, Any]
_Join = Callable[[Tree, Tree, Path, Path], Tree]  # under, changes, and their files
_FROM = re.compile(r"\$\{\s*from\.")


def load(folder: Path, name: str) -> Tree:
    """The YAML file ``folder/name.yaml`` as a plain tree, interpolations untouched.

    Raises FileNotFoundError with the existing names, ValueError if it is not a mapping.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise FileNotFoundError(
            f"{path}: there is no {name!r}{nearest(path.stem, known)}"
            f" (there are: {', '.join(known) or 'none'})"
        )
    return copy.deepcopy(_parse(path, path.stat().st_mtime_ns))


def load_scale(folder: Path, name: str) -> Tree:
    """The whole tree of a scale.

    Raises ValueError for a key that its base scale does not have, and for a cycle of scales.
    """
    return _on_top(folder, name, extend)


def scale_and_bases(folder: Path, name: str) -> list[str]:
    """A scale, the one that it extends, and so on.

    Raises FileNotFoundError as `load` does, ValueError for a cycle.
    """
    found = [name]
    while (under := load(folder, found[-1]).get("extends")) is not None:
        if under in found:
            load_scale(folder, name)  # refuses the cycle
        found.append(under)
    return found


def load_recipe(folder: Path, name: str) -> Tree:
    """The whole tree of a recipe, as if everything stood in one file.

    Raises ValueError for a cycle of recipes, for an unused ``from``, and for ``${from...}``
    without one.
    """
    tree = _on_top(folder, name, _join)
    file, source, text = folder / f"{name}.yaml", tree.pop("from", None), json.dumps(tree)
    used = _FROM.search(text) is not None
    if used and not isinstance(source, str):
        raise ValueError(
            f"{file}: from: {source!r} is no part of the scale that ${{from...}} could mean; write"
            " one, such as from: stages.stage1"
        )
    if not used and source is not None:
        raise ValueError(f"{file}: from: {source}: nothing in the recipe refers to ${{from...}}")
    return json.loads(_FROM.sub(f"${{{source}.", text)) if used else tree


def _join(under: Tree, changes: Tree, *_: Path) -> Tree:
    return put(under, changes)


def _on_top(folder: Path, name: str, join: _Join, above: tuple[str, ...] = ()) -> Tree:
    file, tree = folder / f"{name}.yaml", load(folder, name)
    under = tree.pop("extends", None)
    if under is None:
        return tree
    if under in (*above, name):
        raise ValueError(f"{file}: files extend each other in a circle: {under}, {name}")
    if not isinstance(under, str):
        raise ValueError(f"{file}: extends: {under!r} is not the name of a file, such as tiny")
    try:
        below = _on_top(folder, under, join, (*above, name))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: extends: {under}: {error}") from None
    return join(below, tree, file, folder / f"{under}.yaml")


@lru_cache
def _parse(path: Path, _changed: int) -> Tree:
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: must hold a mapping of keys to values")
    return tree
