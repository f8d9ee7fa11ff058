"""Scores by the `law.*` metrics: of clips, of a student, or of a known law alone.

Needs: `law` (a run with one in `law/`) and, where they are evaluated, `samples` (generated clips)
or `student` (a causal network), each with `reference` (held-out clips). With the law alone, its
training-independent properties are measured (`facts.py`).
"""

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.shards.reader import open_shards
from experiments.checkpoints.networks import load_network, network_section
from experiments.generation.generation import require_network
from experiments.metrics import records
from experiments.metrics.registry import measure, selected
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from experiments.worlds.closed_form import (  # noqa: F401  they register the metrics
    branches,
    facts,
    history,
    samples,
    students,
)
from experiments.worlds.closed_form.context import Clips, View, offered
from lightning_modules.networks.closed_form.network import ClosedForm
from lightning_modules.ranges import NonNegativeInt, Positive, SolverSteps

log = logging.getLogger(__name__)
GIVEN = {"folder", "seed"}
JUDGED = ("samples", "student")
PACKAGES = ("numpy", "scipy", "torch")


def check(recipe: dict[str, Any]) -> None:
    """Refuse a recipe whose settings do not fit, before anything is loaded."""
    settings, needs = (
        bind(score_beside_law, recipe.get("score", {}), GIVEN, "score"),
        recipe["needs"],
    )
    judged = [role for role in JUDGED if role in needs]
    if judged and "reference" not in needs:
        raise ValueError(
            f"needs.reference is missing: {judged[0]} is judged beside held-out clips of the law"
        )
    selected(settings["metrics"], offered(judged))
    same = needs.get("samples") is not None and needs["samples"] == needs["reference"]
    if same and settings["first"] < settings["reference_clips"]:
        raise ValueError(
            f"score.first: {settings['first']} lies among the {settings['reference_clips']}"
            " reference clips of the same set; start behind them"
        )


def run(recipe: dict[str, Any], folder: RunFolder) -> None:
    """Score the other needs of the recipe against ``needs.law``."""
    settings = bind(score_beside_law, recipe["score"], GIVEN, "score")
    score_beside_law(folder=folder, seed=recipe["seed"], **settings)


@torch.no_grad()
def score_beside_law(
    folder: RunFolder,
    seed: int,
    *,
    metrics: str | list[str],
    first: NonNegativeInt,
    clips: NonNegativeInt,
    reference_clips: NonNegativeInt,
    shift: Positive,
    intervals: SolverSteps,
    few_steps: SolverSteps,
) -> None:
    """Compute the metrics and write the results.

    Args:
        metrics: ids, or `all` that the needs allow.
        first: number of the first sample to score.
        clips: how many samples.
        reference_clips: how many held-out clips, from the front of the set; also the clean
            contexts of a student.
        shift, intervals: of the time grids.
        few_steps: of the sampler whose next frames are evaluated.

    Raises:
        ValueError: too few clips, or a need without a law.
    """
    needs, loaded = folder.recipe["needs"], {}
    about: dict[str, Any] = {"seed": seed, "law": needs["law"]}
    if "samples" in needs:
        loaded["samples"], keys = read_clips(folder.need("samples"), first, clips)
        about |= {"samples": needs["samples"], "first": first, "clips": clips}
    else:
        keys = []
    if "student" in needs:
        student, clips_of = folder.need("student"), open_shards(folder.need("reference") / "shards")
        shape = clips_of.manifest["fields"]["latents"]["shape"]
        require_network("student", network_section(student), "needs.reference", shape, clips_of)
        loaded["student"] = load_network(student).eval().requires_grad_(False)
        about |= {"student": needs["student"]}
    if "reference" in needs:
        loaded["reference"], _ = read_clips(folder.need("reference"), 0, reference_clips)
        about |= {"reference": needs["reference"], "reference_clips": reference_clips}
    view = View(read_law(folder.need("law")), seed, shift, intervals, few_steps, **loaded)
    chosen, found = selected(metrics, view.offers), []
    for number, metric in enumerate(chosen):
        found += measure(view, [metric])
        folder.progress(number + 1, len(chosen), "metrics")
    versions = {package: version(package) for package in PACKAGES}
    told = {"calibration": "", "inputs": about, "backend": {"name": "law", "versions": versions}}
    records.write(folder.path, found, keys, {}, told)
    log.info("%s", {m.id: round(f.value, 4) for m, f in found if f.value is not None})


def read_law(where: Path) -> ClosedForm:
    """The law that a run has stored.

    Raises:
        ValueError: there is none.
    """
    if not (where / "law" / "config.json").is_file():
        raise ValueError(f"{where}: has no law/config.json; needs.law must be clips of a law")
    return ClosedForm.from_pretrained(where / "law")


def read_clips(run: Path, first: int, count: int) -> tuple[Clips, list[str]]:
    """Clips `first`.. of a run's shards with their prompts, and their keys.

    Raises:
        ValueError: too few clips, or a set without latents and prompts.
    """
    reader = open_shards(run / "shards")
    if count < 1 or first + count > len(reader):
        raise ValueError(
            f"score: clips {first}..{first + count - 1} wanted, {reader.folder} has {len(reader)}:"
            " lower score.clips, score.first or score.reference_clips"
        )
    if missing := {"latents", "text"} - set(reader.fields):
        raise ValueError(
            f"{reader.folder}: has no {missing.pop()}; beside a law clips are judged as latents:"
            " set sample.save to latents"
        )
    read = [reader.read(i, ["latents", "text"]) for i in range(first, first + count)]
    latents, text = (
        torch.from_numpy(np.stack([sample[name] for sample in read])).float()
        for name in ("latents", "text")
    )
    return Clips(latents, text), [sample["key"] for sample in read]
