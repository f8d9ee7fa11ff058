"""The constants of World Quality and World Reward: how they are measured, and how they are read.

They lie in `calibration.yaml`; `python -m experiments.worlds.digits.calibrate` measures them anew.
A scale names their hash, so that scores by other constants are other runs.

Ceiling: the mean of each quality dimension on held-out real clips. Floor: the lowest mean over the
corruptions of `corruption.PIXELS` (noise, grain, blur, shuffled frames, freezing, splicing). Bound
of a question: what 95% of the real clips keep. The clips measured (512..1023 of the held-out set,
judged against 0..511) are not those that the ceiling row of the table shows.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from experiments.worlds.digits import adherence, distribution, quality  # noqa: F401  distribution registers its metrics
from experiments.worlds.digits.context import View
from experiments.worlds.digits.corruption import PIXELS, corrupt
from experiments.worlds.digits.reference import Reference

FILE = Path(__file__).with_name("calibration.yaml")
SHARE = 0.95  # of real clips that a bound lets through


def load(path: Path | None = None) -> dict[str, Any]:
    """The constants in `path` (default: `FILE`), with `hash` of their content.

    Raises:
        FileNotFoundError: nobody has calibrated.
        ValueError: a constant is missing, not finite, or a floor is not below its ceiling.
    """
    path = path or FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: run python -m experiments.worlds.digits.calibrate"
        )
    constants = yaml.safe_load(path.read_text())
    for name in quality.WEIGHTS:
        bounds = constants.get("quality", {}).get(name, {})
        if not {"floor", "ceiling"} <= set(bounds) or not bounds["floor"] < bounds["ceiling"]:
            raise ValueError(f"{path}: quality.{name} needs floor < ceiling: calibrate again")
    return {**constants, "hash": digest(constants)}


def fitting(wanted: str, probe: str, heldout: str, scale: str) -> dict[str, Any]:
    """The constants, if they are those that a recipe wants and were made from what it needs.

    Compared are the names of the runs, which say how they were made: the same probe trained on
    another machine may differ in its last bits, and is the same eye.

    Args:
        wanted: the hash that the recipe names.
        probe, heldout: names of the runs that the recipe scores with and against.
        scale: for the message.

    Raises:
        ValueError: made from other runs, or with another hash; both say how to get the right ones.
    """
    constants = load()
    made_from = constants.get("made_from", {})
    cure = f"python -m experiments.worlds.digits.calibrate RUNS/{probe} RUNS/{heldout}"
    for role, needed in (("probe", probe), ("heldout", heldout)):
        if made_from.get(role) != needed:
            raise ValueError(
                f"{FILE} was made from the {role} {made_from.get(role)}, this recipe needs "
                f"{needed}: make that run (python -m experiments fit probe --with-needs), then "
                f"{cure}, and put the line it prints into experiments/scale/{scale}.yaml"
            )
    if constants["hash"] != wanted:
        raise ValueError(
            f"score.calibration: {wanted!r} is not the hash of {FILE}; if that file is right, put "
            f'calibration: "{constants["hash"]}" into experiments/scale/{scale}.yaml, else make '
            f"it anew by {cure} and put in the line that this prints"
        )
    return constants


def digest(constants: dict[str, Any]) -> str:
    """Sixteen hex digits of the constants that enter a score."""
    used = {part: constants[part] for part in ("quality", "bounds")}
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()[:16]


def calibrate(videos: np.ndarray, attributes: list[dict], reference: Reference) -> dict[str, Any]:
    """Floors, ceilings and bounds from real clips `videos`, disjoint from the reference."""
    clean = View(videos, attributes, reference, None, seed=0)
    ceilings = _means(clean)
    floors = [
        _means(View(*corrupt(name, videos, attributes, 0), reference, None, seed=0))
        for name in PIXELS
    ]
    bounds = adherence.bounds_of(clean)
    return {
        "quality": {
            name: {
                "floor": round(min(floor[name] for floor in floors), 5),
                "ceiling": round(ceilings[name], 5),
            }
            for name in quality.WEIGHTS
        },
        "bounds": {
            name: round(float(np.quantile(values, SHARE)), 5) for name, values in bounds.items()
        },
    }


def _means(view: View) -> dict[str, float]:
    return {name: float(np.nanmean(quality.dimension(view, name))) for name in quality.WEIGHTS}
