"""Scores by the `world.*` metrics: sampled clips beside held-out real ones, through a probe.

Needs: `samples` (shards with pixels, captions and attributes), `reference` (held-out clips),
`probe` (a fitted WorldProbe). The rows `ceiling` and `floor` of the table are the same on held-out
clips themselves, past those that serve as the reference, as they are or corrupted in one known way.
"""

import json
import logging
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.shards.reader import ShardReader, open_shards
from experiments.generation.codec import autoencoder_of
from experiments.launch.hardware import launch_of
from experiments.metrics import records
from experiments.metrics.registry import measure, selected
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from experiments.worlds.digits import adherence, distribution, quality  # noqa: F401  they register
from experiments.worlds.digits.calibration import fitting
from experiments.worlds.digits.context import View
from experiments.worlds.digits.corruption import NAMES
from experiments.worlds.digits.corruption import corrupt as corrupted
from experiments.worlds.digits.moving_digits import World
from experiments.worlds.digits.probe_network import ProbeNetwork
from experiments.worlds.digits.reference import Reference

log = logging.getLogger(__name__)
OFFERS = ("pixels", "probe", "calibration")
GIVEN = {"samples", "reference", "probe", "folder", "seed"}
PACKAGES = ("numpy", "scipy", "torch", "opencv-python-headless")


def check(recipe: dict[str, Any]) -> None:
    """Refuse a recipe whose settings do not fit, before anything is loaded."""
    settings = bind(score_clips, recipe["score"], GIVEN, "score")
    selected(settings["metrics"], OFFERS)
    if settings["corrupt"] not in NAMES:
        raise ValueError(
            f"score.corrupt: no corruption {settings['corrupt']!r}; there are {', '.join(NAMES)}"
        )
    launch = launch_of(recipe)
    needs = recipe["needs"]
    for role in ("samples", "reference", "probe"):
        if role not in needs:
            raise ValueError(f"needs.{role} is missing: score needs samples, reference and probe")
    _disjoint(
        needs["samples"] == needs["reference"], settings["first"], settings["reference_clips"]
    )
    _constants(settings["calibration"], needs["probe"], needs["reference"], launch.scale)


def run(recipe: dict[str, Any], folder: RunFolder) -> None:
    """Score ``needs.samples`` against ``needs.reference`` through ``needs.probe``."""
    score_clips(
        samples=folder.need("samples"),
        reference=folder.need("reference"),
        probe=folder.need("probe"),
        folder=folder,
        seed=recipe["seed"],
        **bind(score_clips, recipe["score"], GIVEN, "score"),
    )


def score_clips(
    samples: Path,
    reference: Path,
    probe: Path,
    folder: RunFolder,
    seed: int,
    *,
    metrics: str | list[str],
    first: int,
    clips: int,
    reference_clips: int,
    corrupt: str,
    calibration: str,
) -> None:
    """Compute the metrics and write them down.

    Args:
        samples, reference, probe: run folders.
        metrics: ids, or `all`.
        first: number of the first sample to score.
        clips: how many.
        reference_clips: how many of the reference, from its front.
        corrupt: what is done to the samples before they are scored; `none` for a student.
        calibration: hash of the constants of `metrics/calibration.yaml`.

    Raises:
        ValueError: too few clips; samples that overlap the reference; clips of another world;
            constants with another hash, or made from other runs.
    """
    constants = _constants(calibration, probe, reference, launch_of(folder.recipe).scale)
    _disjoint(samples == reference, first, reference_clips)
    judged, beside = (open_shards(run / "shards") for run in (samples, reference))
    videos, attributes, _ = read_clips(samples / "shards", first, clips)
    videos, attributes = corrupted(corrupt, videos, attributes, seed)
    probe_hash = json.loads((probe / "probe" / "meta.json").read_text())["sha256"]
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
    """A sweep's worker judges many samples beside one reference; hashes tell it from another."""
    real, _, manifest = read_clips(run / "shards", 0, clips)
    network = ProbeNetwork.load(probe / "probe")
    return Reference(real, network, world_of(manifest), manifest["fps"])


def read_clips(
    shards: Path, first: int, count: int
) -> tuple[np.ndarray, list[dict[str, Any]], dict[str, Any]]:
    """Clips `first`.. as pixels uint8 [count, T, H, W, c], their attributes, and the manifest.

    Real clips go through the autoencoder, as generated ones do, so that its loss is no difference.

    Raises:
        ValueError: too few clips, or a set without pixels and latents.
    """
    reader = open_shards(shards)
    if first < 0 or count < 1 or first + count > len(reader):
        raise ValueError(
            f"score: clips {first}..{first + count - 1} wanted, {shards} has {len(reader)}: lower "
            "score.clips, score.first or score.reference_clips"
        )
    field = next((name for name in ("latents", "video") if name in reader.fields), None)
    if field is None:
        raise ValueError(f"{shards}: has neither latents nor video; score wants clips")
    stored = [reader.read(i, [field]) for i in range(first, first + count)]
    values = np.stack([sample[field] for sample in stored])
    if field == "latents":
        latents = torch.from_numpy(values).float()
        values = autoencoder_of(reader.manifest).decode(latents).numpy()
    return values, [_attributes(sample, reader) for sample in stored], reader.manifest


def world_of(manifest: dict[str, Any]) -> World:
    """The law behind a held-out set.

    Raises:
        ValueError: the set does not say which world it is of.
    """
    if "world" not in manifest:
        raise ValueError("the reference's manifest.json names no world: curate it again")
    return World(**manifest["world"])


def _attributes(sample: dict[str, Any], reader: ShardReader) -> dict[str, Any]:
    try:
        return sample["info"]["attributes"]
    except KeyError:
        raise ValueError(
            f"sample {sample['key']!r} of {reader.folder} has no attributes, which its caption is "
            "judged by: sample from prompts of the tiny world"
        ) from None


def _constants(wanted: str, probe: str | Path, heldout: str | Path, scale: str) -> dict[str, Any]:
    return fitting(wanted, Path(probe).name, Path(heldout).name, scale or "SCALE")


def _disjoint(same: bool, first: int, reference_clips: int) -> None:
    if same and first < reference_clips:
        raise ValueError(
            f"score.first: {first} lies among the {reference_clips} reference clips of the same "
            f"set, so clips would be compared with themselves; start at {reference_clips}"
        )
