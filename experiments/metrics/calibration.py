"""The constants of World Quality and World Reward: how they are measured, and how they are read.

They lie in `calibration.yaml`; `python -m experiments.calibrate` measures them anew.

Ceiling: the mean of each quality dimension on held-out real clips. Floor: the lowest mean over the
corruptions of `corruption.PIXELS` (noise, grain, blur, shuffled frames, freezing, splicing). Bound
of a question: what 95% of the real clips keep. The clips measured (512..1023 of the held-out set,
judged against 0..511) are not those that the ceiling row of the table shows.
"""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from experiments.metrics import adherence, quality, truth  # noqa: F401  truth registers its metrics
from experiments.metrics.corruption import PIXELS, corrupt
from experiments.metrics.view import View

FILE = Path(__file__).with_name("calibration.yaml")
SHARE = 0.95  # of real clips that a bound lets through


@lru_cache(maxsize=4)
def load(path: Path = FILE) -> dict[str, Any]:
    """The constants, with `hash` of their content.

    Raises:
        FileNotFoundError: nobody has calibrated.
        ValueError: a constant is missing, not finite, or a floor is not below its ceiling.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run python -m experiments.calibrate")
    constants = yaml.safe_load(path.read_text())
    for name in quality.WEIGHTS:
        bounds = constants.get("quality", {}).get(name, {})
        if not {"floor", "ceiling"} <= set(bounds) or not bounds["floor"] < bounds["ceiling"]:
            raise ValueError(f"{path}: quality.{name} needs floor < ceiling: calibrate again")
    return {**constants, "hash": digest(constants)}


def digest(constants: dict[str, Any]) -> str:
    """Sixteen hex digits of the constants that enter a score."""
    used = {part: constants[part] for part in ("quality", "bounds")}
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()[:16]


def calibrate(
    videos: np.ndarray, attributes: list[dict], real: np.ndarray, probe, world, fps: float
) -> dict[str, Any]:
    """Floors, ceilings and bounds from real clips `videos`, disjoint from `real`."""
    clean = View(videos, attributes, real, probe, world, fps, None, seed=0)
    ceilings = _means(clean)
    floors = [
        _means(View(*corrupt(name, videos, attributes, 0), real, probe, world, fps, None, 0))
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
