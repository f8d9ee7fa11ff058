"""The one reader of JSON files that this program wrote: any of them may be cut off or edited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_object(path: Path, cure: str, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: of the file.
        cure: what to do where it is not as it should be.
        keys: the ones that it must have.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds something else, or lacks a key; names the file and the cure.
    """
    found = _read(path, dict, cure)
    if lacks := [key for key in keys if key not in found]:
        raise ValueError(f"{path} is damaged: it has no {', '.join(lacks)}; {cure}")
    return found


def read_list(path: Path, cure: str) -> list[Any]:
    """The JSON list in a file; the errors are those of `read_object`."""
    return _read(path, list, cure)


def _read(path: Path, kind: type, cure: str) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error}); {cure}") from None
    if not isinstance(found, kind):
        other = type(found).__name__
        raise ValueError(f"{path} is damaged: it holds no {kind.__name__}, but {other}; {cure}")
    return found
