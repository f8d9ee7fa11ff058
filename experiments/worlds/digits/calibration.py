"""The constants of World Quality and World Reward: measured by a run, which every score needs.

Ceiling: the Frechet joint distance of transitions (`transitions`) of held-out real clips. Floor:
the least distance of their worthless versions, by every corruption of `corruption`. Bound of a
question: what 95% of the real clips keep. Half of the clips are measured against the
other half; the ceiling row of the table uses further clips.

The run needs `reference` (held-out clips) and `probe`, and leaves `calibration.json`::

    {"distance": {"floor": 35.1, "ceiling": 7.9, "of": {corruption: 35.1}},
     "bounds": {name: 3.7},
     "made_from": {"probe": run, "probe_sha256": ..., "reference": run, ...}}
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.atomic import write_text
from datamodules.json_files import read_object
from datamodules.shards.reader import open_shards
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from experiments.worlds.digits import adherence
from experiments.worlds.digits.context import View
from experiments.worlds.digits.corruption import WORTHLESS, corrupt
from experiments.worlds.digits.probe_network import ProbeNetwork, read_probe_meta
from experiments.worlds.digits.reference import Reference, read_clips, world_of
from lightning_modules.ranges import PositiveInt

log = logging.getLogger(__name__)
FILE = "calibration.json"
_PARTS = ("distance", "bounds", "made_from")
SHARE = 0.95  # share of real clips within a bound
GIVEN = {"reference", "probe", "folder"}


def check(recipe: dict[str, Any]) -> None:
    """Refuse a recipe whose settings do not fit, before anything is loaded."""
    settings = bind(measure_constants, recipe.get("score", {}), GIVEN, "score")
    if settings["clips"] < 2:
        raise ValueError(
            f"score.clips: {settings['clips']}; half of them are measured, so 2 or more"
        )
    if "reference" not in recipe["needs"]:
        raise ValueError("needs.reference is missing: constants are those of held-out real clips")


def run(recipe: dict[str, Any], folder: RunFolder) -> None:
    """Measure the constants of ``needs.reference`` through ``needs.probe``."""
    settings = bind(measure_constants, recipe["score"], GIVEN, "score")
    measure_constants(folder.need("reference"), folder.need("probe"), folder, **settings)


def measure_constants(
    reference: Path, probe: Path, folder: RunFolder, *, clips: PositiveInt
) -> None:
    """Measure floors, ceilings and bounds, and store them with the runs they were made from.

    Args:
        reference, probe: run folders.
        folder: of this run.
        clips: how many of the reference are read, from its front; the second half is measured
            against the first.

    Raises:
        ValueError: too few clips, or worthless clips as near as real ones.
    """
    real, attributes, manifest = read_clips(reference / "shards", 0, clips)
    half, network = clips // 2, ProbeNetwork.load(probe / "probe")
    beside = Reference(real[:half], attributes[:half], network, world_of(manifest), manifest["fps"])
    found = calibrate(real[half:], attributes[half:], beside)
    _require_sound(found, f"{clips} clips of {reference.name} through {probe.name}")
    meta = read_probe_meta(probe / "probe")
    found["made_from"] = {
        "probe": probe.name,
        "probe_sha256": meta["sha256"],
        "probe_gate": meta["gate"],
        "reference": reference.name,
        "reference_fingerprint": open_shards(reference / "shards").fingerprint,
        "real": [0, half],
        "measured": [half, clips],
        "floors": list(WORTHLESS),
        "bounds_keep": SHARE,
    }
    write_text(folder.path / FILE, json.dumps(found, indent=1, sort_keys=True))
    log.info("constants %s: %s", digest(found), found["distance"])


def constants_of(run: Path, probe: str, reference: str) -> dict[str, Any]:
    """The constants that a run has measured, with `hash` of their content.

    Runs are compared by name, which hashes their recipe: the same probe trained on another machine
    may differ in its last bits and still counts as the same evaluator.

    Args:
        run: folder of the calibration.
        probe, reference: names of the runs that a score is made with.

    Raises:
        FileNotFoundError: the run holds no constants.
        ValueError: one is missing, worthless clips are as near as real ones, or of other runs.
    """
    path = run / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing, which a score goes by: needs.calibration must be a run of the"
            " recipe calibration"
        )
    constants = read_object(path, f"remove {run} to measure again", _PARTS)
    _require_sound(constants, str(path))
    for role, needed in (("probe", probe), ("reference", reference)):
        made_from = constants["made_from"][role]
        if made_from != needed:
            raise ValueError(
                f"{path} was made from the {role} {made_from}, this score needs {needed}: measure"
                f" others, needs.calibration={{recipe: calibration, needs: {{{role}: ...}}}}"
            )
    return {**constants, "hash": digest(constants)}


def _require_sound(constants: dict[str, Any], where: str) -> None:
    bounds = constants.get("distance", {})
    sound = {"floor", "ceiling"} <= set(bounds) and 0 < bounds["ceiling"] < bounds["floor"]
    if not sound:
        raise ValueError(
            f"{where}: distance needs 0 < ceiling < floor, and has {bounds or 'neither'}:"
            " take more clips (data.reference), or delete the run folder and measure again"
        )


def digest(constants: dict[str, Any]) -> str:
    """Sixteen hex digits of the constants that enter a score."""
    used = {part: constants[part] for part in ("distance", "bounds")}
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()[:16]


def calibrate(videos: np.ndarray, attributes: list[dict], reference: Reference) -> dict[str, Any]:
    """Floor, ceiling and bounds from real clips `videos`, disjoint from the reference."""
    clean = View(videos, attributes, reference, None, seed=0)
    worthless = {
        name: _distance(View(*corrupt(name, videos, attributes, 0), reference, None, seed=0))
        for name in WORTHLESS
    }
    return {
        "distance": {
            "floor": min(worthless.values()),
            "ceiling": _distance(clean),
            "of": worthless,
        },
        "bounds": {
            name: round(float(np.quantile(values, SHARE)), 5)
            for name, values in adherence.bounds_of(clean).items()
        },
    }


def _distance(view: View) -> float:
    value, _ = view.reference.law.distance(view.readings, view.wanted, None)
    return round(value, 5)
