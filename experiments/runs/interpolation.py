"""References between settings, ``${stages.base.steps}``, replaced by what they refer to.

OmegaConf defines the semantics and handles everything else. It takes milliseconds per recipe, and a
sweep of a thousand cells has thousands of them, so plain references are resolved here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_REFERENCE = re.compile(r"\$\{\s*([A-Za-z_]\w*(?:\.\w+)*)\s*\}")
_ESCAPED = "\\${"
_DEEPEST = 50


class Intricate(Exception):
    """Not a plain reference to an existing key: left to OmegaConf, also for its error message."""


def follow(tree: Mapping[str, Any], value: Any, depth: int = 0) -> Any:
    """A copy of ``value``, a part of ``tree``, with every reference replaced.

    Raises Intricate for a key that is not there, a circle, and any other kind of interpolation.
    """
    if depth > _DEEPEST:
        raise Intricate
    if isinstance(value, str):
        return _follow_text(tree, value, depth)
    if isinstance(value, dict):
        return {key: follow(tree, each, depth + 1) for key, each in value.items()}
    if isinstance(value, list):
        return [follow(tree, each, depth + 1) for each in value]
    return value


def _follow_text(tree: Mapping[str, Any], text: str, depth: int) -> Any:
    if text == "???":
        raise Intricate  # OmegaConf's marker of a missing value
    if "$" not in text and "\\" not in text:
        return text
    whole = _REFERENCE.fullmatch(text)
    if whole:
        return follow(tree, _at(tree, whole[1], depth), depth + 1)
    pieces = []
    for piece in text.split(_ESCAPED):  # an escaped "${" stands for itself
        rest = _REFERENCE.sub("", piece)
        if "$" in rest or "\\" in rest:
            raise Intricate
        pieces.append(_REFERENCE.sub(lambda found: _word(tree, found[1], depth), piece))
    return "${".join(pieces)


def _at(tree: Mapping[str, Any], path: str, depth: int) -> Any:
    found: Any = tree
    for part in path.split("."):
        if isinstance(found, str):
            found = follow(tree, found, depth + 1)
        if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, dict) and part in found:
            found = found[part]
        else:
            raise Intricate
    return found


def _word(tree: Mapping[str, Any], path: str, depth: int) -> str:
    """The text that replaces a reference inside a longer string."""
    value = follow(tree, _at(tree, path, depth), depth + 1)
    if type(value) not in (str, int):
        raise Intricate
    return str(value)
