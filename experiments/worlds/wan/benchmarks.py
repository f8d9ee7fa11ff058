"""Formulas of VBench and VisionReward over the outputs of their programs, with intervals over
prompts.

Their constants, with sources, are in `benchmarks.yaml`. Scores here are on the programs' own scale;
records and tables show them times 100.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from experiments.metrics.statistics import RESAMPLES, resample_weights
from experiments.runs.yaml_reader import read_yaml

FILE = Path(__file__).with_name("benchmarks.yaml")
_CONSTANTS = read_yaml(FILE)
VBENCH = _CONSTANTS["vbench"]
DIMENSIONS: dict[str, dict] = VBENCH["dimensions"]
WEIGHTS = np.array(_CONSTANTS["vision_reward"]["weights"])
ROUNDED = 0.5e-4  # the most that a weight of VisionReward differs from the published one
HASH = hashlib.sha256(json.dumps(_CONSTANTS, sort_keys=True).encode()).hexdigest()[:16]

Number = TypeVar("Number", float, np.ndarray)


def normalised(dimension: str, score: Number) -> Number:
    """A dimension's score between VBench's min (0) and max (1); beyond them it is not clipped."""
    about = DIMENSIONS[dimension]
    return (score - about["min"]) / (about["max"] - about["min"])


def lacking(composite: str, scores: Mapping[str, object]) -> list[str]:
    """The dimensions that Quality, Semantic or Total (in small letters) rests on and are not there.

    VBench's own script silently takes a missing dimension as 0.
    """
    return [
        name
        for name, about in DIMENSIONS.items()
        if composite in ("total", about["of"]) and name not in scores
    ]


def composites(scores: Mapping[str, Number]) -> dict[str, Number]:
    """Quality, Semantic and Total of the dimensions' scores, as far as nothing is lacking.

    Args:
        scores: a number, or an array [R] (of resamples), by dimension.
    """
    found = {}
    for composite in VBENCH["composites"]:
        if not lacking(composite, scores):
            of = {name: d["weight"] for name, d in DIMENSIONS.items() if d["of"] == composite}
            parts = [weight * normalised(name, scores[name]) for name, weight in of.items()]
            found[composite] = sum(parts) / sum(of.values())
    if not lacking("total", scores):
        weights = VBENCH["composites"]
        parts = [weight * found[composite] for composite, weight in weights.items()]
        found["total"] = sum(parts) / sum(weights.values())
    return found


def reward(answers: Sequence[int]) -> float:
    """VisionReward's score of one video from its answers, 1 or -1, up to ``ROUNDED``."""
    return float(np.mean(WEIGHTS * np.array(answers)))


def resampled(
    values: Mapping[str, Mapping[str, float]], prompts: Mapping[str, str], seed: int
) -> dict[str, np.ndarray]:
    """Bootstrap means [R] of several quantities over the prompts that they share.

    A prompt is resampled with all its videos, stratified by the quantities that it serves (as in
    VBench's prompt lists), so that each quantity keeps its number of prompts.

    Args:
        values: by quantity and video.
        prompts: of each video.
    """
    serves: dict[str, set[str]] = {}
    for quantity, videos in values.items():
        for video in videos:
            serves.setdefault(prompts[video], set()).add(quantity)
    place = {prompt: at for at, prompt in enumerate(sorted(serves))}
    strata: dict[tuple[str, ...], list[int]] = {}
    for prompt, at in place.items():
        strata.setdefault(tuple(sorted(serves[prompt])), []).append(at)
    weights = np.empty((RESAMPLES, len(place)))
    for number, stratum in enumerate(sorted(strata)):
        at = strata[stratum]
        weights[:, at] = resample_weights(len(at), RESAMPLES, seed + number)
    found = {}
    for quantity, videos in values.items():
        sums, counts = np.zeros(len(place)), np.zeros(len(place))
        for video, value in videos.items():
            sums[place[prompts[video]]] += value
            counts[place[prompts[video]]] += 1
        found[quantity] = (weights @ sums) / (weights @ counts)
    return found
