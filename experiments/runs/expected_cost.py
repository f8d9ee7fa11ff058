"""The scale's hints of what runs cost, ``launch: {cost_s: {<recipe>: 60}}``: used to plan only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.runs.files import load, scale_and_bases


def hinted(costs: Mapping[str, Any], recipe: str, file: Path) -> float | None:
    """Device-seconds of a recipe at its scale; None if there is no hint.

    Raises:
        ValueError: it is no duration.
    """
    seconds = costs.get(recipe)
    known = seconds is None or (isinstance(seconds, (int, float)) and type(seconds) is not bool)
    if not known or not 0 <= (seconds or 0) < math.inf:
        raise ValueError(f"{file}: launch.cost_s.{recipe}: {seconds!r} is no number of seconds")
    return seconds


def scale_of_hint(scales: Path, scale: str, recipe: str) -> str:
    """The scale that states the hint: itself, or the nearest of those that it extends."""
    lineage = scale_and_bases(scales, scale)
    own = (load(scales, each).get("launch", {}).get("cost_s", {}) for each in lineage)
    return next((s for s, costs in zip(lineage, own, strict=True) if recipe in costs), scale)


def count_of(resolved: Mapping[str, Any]) -> int:
    """Steps of a fit, or what else its verb counts; 0 if it says nothing."""
    section = resolved.get(resolved["verb"]) or {}
    count = section.get("steps" if resolved["verb"] == "fit" else "count")
    return count if type(count) is int and count > 0 else 0
