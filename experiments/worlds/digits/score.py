"""Scores by the `world.*` metrics: sampled clips against held-out real ones, in probe features.

Needs: `samples` (shards with pixels, captions and attributes), `reference` (held-out clips),
`probe` (a fitted WorldProbe), `calibration` (the run that measured the constants). The rows
`ceiling` and `floor` of the table are the same for held-out clips beyond the reference, unchanged
or under one known corruption.

A recipe with neither samples nor calibration is the calibration itself (`calibration.py`).
"""

import logging
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datamodules.shards.reader import open_shards
from experiments.metrics import records
from experiments.metrics.registry import measure, selected
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from experiments.worlds.digits import (  # noqa: F401  they register the metrics
    adherence,
    calibration,
    distribution,
    quality,
)
from experiments.worlds.digits.calibration import constants_of
from experiments.worlds.digits.context import View
from experiments.worlds.digits.corruption import NAMES
from experiments.worlds.digits.corruption import corrupt as corrupted
from experiments.worlds.digits.probe_network import ProbeNetwork, read_probe_meta
from experiments.worlds.digits.reference import Reference, read_clips, world_of
from lightning_modules.ranges import NonNegativeInt, PositiveInt

log = logging.getLogger(__name__)
OFFERS = ("pixels", "probe", "calibration")
ROLES = ("samples", "reference", "probe", "calibration")
GIVEN = {*ROLES, "folder", "seed"}
PACKAGES = ("numpy", "scipy", "torch", "opencv-python-headless")


def check(recipe: dict[str, Any]) -> None:
    """Refuse a recipe whose settings do not fit, before anything is loaded."""
    needs = recipe["needs"]
    if _calibrates(recipe):
        calibration.check(recipe)
        return
    for role in ROLES:
        if role not in needs:
            raise ValueError(f"needs.{role} is missing: score needs {', '.join(ROLES)}")
    settings = bind(score_clips, recipe.get("score", {}), GIVEN, "score")
    selected(settings["metrics"], OFFERS)
    if settings["corrupt"] not in NAMES:
        raise ValueError(
            f"score.corrupt: no corruption {settings['corrupt']!r}; there are {', '.join(NAMES)}"
        )
    _disjoint(
        needs["samples"] == needs["reference"], settings["first"], settings["reference_clips"]
    )


def run(recipe: dict[str, Any], folder: RunFolder) -> None:
    """Score ``needs.samples`` against ``needs.reference`` through ``needs.probe``, or calibrate."""
    if _calibrates(recipe):
        calibration.run(recipe, folder)
        return
    needs = {role: folder.need(role) for role in ROLES}
    settings = bind(score_clips, recipe["score"], GIVEN, "score")
    score_clips(**needs, folder=folder, seed=recipe["seed"], **settings)


def _calibrates(recipe: dict[str, Any]) -> bool:
    return not {"samples", "calibration"} & set(recipe["needs"])


def score_clips(
    samples: Path,
    reference: Path,
    probe: Path,
    calibration: Path,
    folder: RunFolder,
    seed: int,
    *,
    metrics: str | list[str],
    first: NonNegativeInt,
    clips: PositiveInt,
    reference_clips: PositiveInt,
    corrupt: str,
) -> None:
    """Compute the metrics and write the results.

    Args:
        samples, reference, probe, calibration: run folders.
        metrics: ids, or `all`.
        first: number of the first sample to score.
        clips: how many.
        reference_clips: how many of the reference, from its front.
        corrupt: corruption applied to the samples before scoring; `none` for a student.

    Raises:
        ValueError: too few clips; samples that overlap the reference; clips of another world;
            constants that were made from other runs.
    """
    constants = constants_of(calibration, probe.name, reference.name)
    _disjoint(samples == reference, first, reference_clips)
    judged, beside = (open_shards(run / "shards") for run in (samples, reference))
    videos, attributes, _ = read_clips(samples / "shards", first, clips)
    videos, attributes = corrupted(corrupt, videos, attributes, seed)
    probe_hash = read_probe_meta(probe / "probe")["sha256"]
    real = _reference(reference, beside.fingerprint, reference_clips, probe, probe_hash)
    view = View(videos, attributes, real, constants, seed)
    found = measure(view, selected(metrics, OFFERS))
    about = {
        "calibration": constants["hash"],
        "inputs": {
            "samples": samples.name,
            "samples_fingerprint": judged.fingerprint,
            "reference": reference.name,
            "reference_fingerprint": beside.fingerprint,
            "first": first,
            "clips": clips,
            "reference_clips": reference_clips,
            "corrupt": corrupt,
            "seed": seed,
            "fps": real.fps,
            "frames": videos.shape[1],
        },
        "backend": {
            "name": "world",
            "probe": probe.name,
            "probe_sha256": probe_hash,
            "versions": {package: version(package) for package in PACKAGES},
        },
    }
    keys = judged.keys[first : first + clips]
    records.write(folder.path, found, keys, distribution.curves(view), about)
    values = {m.id: round(f.value, 4) for m, f in found if f.value is not None}
    log.info("%d clips of %s (%s): %s", clips, samples.name, corrupt, values)


@lru_cache(maxsize=1)
def _reference(run: Path, fingerprint: str, clips: int, probe: Path, probe_hash: str) -> Reference:
    """Cached, since a sweep's worker scores many samples against one reference; keyed by hashes."""
    real, attributes, manifest = read_clips(run / "shards", 0, clips)
    network = ProbeNetwork.load(probe / "probe")
    return Reference(real, attributes, network, world_of(manifest), manifest["fps"])


def _disjoint(same: bool, first: int, reference_clips: int) -> None:
    if same and first < reference_clips:
        raise ValueError(
            f"score.first: {first} lies among the {reference_clips} reference clips of the same "
            f"set, so clips would be compared with themselves; start at {reference_clips}"
        )
