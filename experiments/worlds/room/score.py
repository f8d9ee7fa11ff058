"""Scores by the `room.*` metrics: sampled clips against the renderer at their cameras.

Needs: `samples` (clips with poses, whose info says where they start) and `room` (a set of the
world, whose manifest has its law). The ceiling are held-out walks as they are, the floors the same
walks with their first frame repeated, or with the pictures of another walk.
"""

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from datamodules.cameras import from_stored, placed
from datamodules.shards.reader import ShardReader, open_shards
from experiments.generation.codec import autoencoder_of
from experiments.metrics import records
from experiments.metrics.registry import measure, selected
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from experiments.worlds.room import metrics as _metrics  # noqa: F401  it registers the metrics
from experiments.worlds.room.context import Commanded, View
from experiments.worlds.room.walks import Room
from lightning_modules.ranges import NonNegativeInt, PositiveInt

log = logging.getLogger(__name__)
OFFERS = ("walks",)
ROLES = ("samples", "room")
GIVEN = {*ROLES, "folder", "seed"}
PACKAGES = ("numpy", "scipy", "torch")
FIELDS = ("poses", "latents", "video")


def check(recipe: dict[str, Any]) -> None:
    """Refuse a recipe whose settings do not fit, before anything is loaded."""
    for role in ROLES:
        if role not in recipe["needs"]:
            raise ValueError(f"needs.{role} is missing: score needs {', '.join(ROLES)}")
    settings = bind(score_walks, recipe.get("score", {}), GIVEN, "score")
    selected(settings["metrics"], OFFERS)


def run(recipe: dict[str, Any], folder: RunFolder) -> None:
    """Score ``needs.samples`` against the renderer."""
    needs = {role: folder.need(role) for role in ROLES}
    settings = bind(score_walks, recipe["score"], GIVEN, "score")
    score_walks(**needs, folder=folder, seed=recipe["seed"], **settings)


def score_walks(
    samples: Path,
    room: Path,
    folder: RunFolder,
    seed: int,
    *,
    metrics: str | list[str],
    first: NonNegativeInt,
    clips: PositiveInt,
    corrupt: Literal["none", "still", "other_walk"],
) -> None:
    """Compute the metrics and write the results.

    Args:
        samples, room: run folders.
        metrics: ids, or `all`.
        first: number of the first sample to score.
        clips: how many.
        corrupt: what is done to the samples first; ``none`` for a student.

    Raises:
        ValueError: too few clips, or clips without cameras, pictures or a start.
    """
    judged = open_shards(samples / "shards")
    law = _law(room / "shards")
    read = _read(judged, first, clips)
    videos = corrupted(_videos(judged, read), corrupt)
    view = View(
        videos,
        [_commanded(sample, judged) for sample in read],
        law,
        seed,
        lambda count: folder.progress(count, clips, "walks"),
    )
    found = measure(view, selected(metrics, OFFERS))
    versions = {package: version(package) for package in PACKAGES}
    inputs = {"samples": samples.name, "samples_fingerprint": judged.fingerprint, "first": first}
    inputs |= {"clips": clips, "corrupt": corrupt, "seed": seed, "frames": videos.shape[1]}
    about = {"calibration": "", "inputs": inputs, "backend": {"name": "room", "versions": versions}}
    records.write(folder.path, found, judged.keys[first : first + clips], {}, about)
    values = {m.id: round(f.value, 4) for m, f in found if f.value is not None}
    log.info("%d walks of %s (%s): %s", clips, samples.name, corrupt, values)


def _law(shards: Path) -> Room:
    """The room that a set of clips was rendered in. Raises ValueError if it was in none."""
    manifest = open_shards(shards).manifest
    if "room" not in manifest:
        raise ValueError(
            f"{shards / 'manifest.json'}: names no room, but the walks are judged by one; give"
            " clips of the room as needs.room, or score by the recipe of the other world"
        )
    return Room(**manifest["room"])


def corrupted(videos: np.ndarray, how: str) -> np.ndarray:
    """The floors of clips ``[N, T, S, S, 3]``."""
    if how == "still":
        return np.repeat(videos[:, :1], videos.shape[1], 1)
    return np.roll(videos, 1, 0) if how == "other_walk" else videos


def _read(judged: ShardReader, first: int, count: int) -> list[dict[str, Any]]:
    if first + count > len(judged):
        raise ValueError(
            f"score: clips {first}..{first + count - 1} wanted, {judged.folder} has {len(judged)}:"
            " lower score.clips or score.first"
        )
    if "poses" not in judged.fields or not {"latents", "video"} & set(judged.fields):
        raise ValueError(
            f"{judged.folder}: has no poses, or neither latents nor video; score.py wants clips"
            " that were sampled from walks through the room"
        )
    if judged.manifest.get("given") == 0:
        raise ValueError(
            f"{judged.folder}: nothing told the student where in the room its walks begin, so no"
            " camera can be compared; sample with sample.given=1"
        )
    fields = [name for name in FIELDS if name in judged.fields]
    return [judged.read(number, fields) for number in range(first, first + count)]


def _videos(judged: ShardReader, read: list[dict[str, Any]]) -> np.ndarray:
    """Pixels uint8 ``[N, T, S, S, 3]``; real clips pass through the autoencoder, as others do."""
    if "latents" not in judged.fields:
        return np.stack([sample["video"] for sample in read])
    latents = torch.from_numpy(np.stack([sample["latents"] for sample in read])).float()
    return autoencoder_of(judged.manifest).decode(latents).numpy()


def _commanded(sample: dict[str, Any], judged: ShardReader) -> Commanded:
    info = sample["info"]
    try:
        start, paint, others = info["start"], info["attributes"]["paint"], info["others"]
    except KeyError as error:
        raise ValueError(
            f"sample {sample['key']!r} of {judged.folder} has no {error.args[0]}: sample from"
            " walks through the room"
        ) from None
    return Commanded(paint, frozenset(others), from_stored(sample["poses"]) @ placed(*start))
