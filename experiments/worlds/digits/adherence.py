"""Prompt adherence of clips, and a judge's questions: Semantic, Instruct, Reward, Total.

A caption has up to four attributes, each read by the probe and the path fit: the digit, moving or
still, the direction of the first step, the speed. `World Reward` has VisionReward's form, 100/K *
sum_k a_k with a_k = +-1, over the questions of `answers`, equally weighted; the bounds of "stable",
"smooth" and so on are what 95% of real clips keep (`calibration.py`).
"""

import numpy as np

from experiments.metrics.registry import Measurement, NotApplicable, metric
from experiments.worlds.digits import appearance, quality
from experiments.worlds.digits.context import View
from experiments.worlds.digits.quality import of_resamples, per_clip
from experiments.worlds.digits.transitions import ground_agreement, ground_certainty

SEMANTIC = ("digit", "moving", "direction", "speed", "all")


def attributes(view: View) -> dict[str, np.ndarray]:
    """Share of each attribute that is right, float [N]; NaN where a caption does not mention it.

    `digit` is a share of frames; the others are 0 or 1. Direction and speed do not apply to
    "standing still" captions. In a clip without a digit in most frames no motion is right.
    """
    wanted, path = view.wanted, view.path
    seen = shows_a_digit(view)
    moving = (path.moving == wanted.moving) & seen
    direction = path.moving & (path.heading[:, 0] == wanted.heading) & seen
    speed = (path.speed == wanted.speed) & seen
    return {
        "digit": view.digit_right.mean(axis=1),
        "moving": moving.astype(float),
        "direction": np.where(wanted.moving, direction, np.nan),
        "speed": np.where(wanted.moving, speed, np.nan),
    }


def shows_a_digit(view: View) -> np.ndarray:
    """Whether most frames show a digit, bool [N]."""
    return (view.readings.presence > 0.5).mean(axis=1) > 0.5


def share_right(view: View) -> np.ndarray:
    """Share of the caption's attributes that hold, [N]; the digit holds if most frames show it."""
    table = np.stack(list(attributes(view).values()))
    table[0] = table[0] > 0.5
    return np.nanmean(table, axis=0)


def semantic_table(view: View) -> dict[str, np.ndarray]:
    """The dimensions of World Semantic, each [N]."""
    return {**attributes(view), "all": (share_right(view) == 1).astype(float)}


def bounds_of(view: View) -> dict[str, np.ndarray]:
    """Per-clip measures that the reward bounds by real clips, each [N]; lower is better."""
    sharp = np.log(np.maximum(view.sharpness, 1e-6))
    identity, ground = view.readings.identity, view.readings.ground
    return {
        "jump": view.path.step.max(axis=1),
        "unlawful": view.path.residual.max(axis=1),
        "sharpness_change": sharp.max(axis=1) - sharp.min(axis=1),
        "detail_gap": np.abs(sharp - np.log(view.reference.sharpness)).max(axis=1),
        "ground_doubt": 1 - ground_certainty(ground).min(axis=1),
        "ground_change": 1 - ground_agreement(ground)[..., 0].min(axis=1),
        "shape_change": 1 - appearance.consistency(identity),
    }


def answers(view: View) -> dict[str, np.ndarray]:
    """The yes/no questions, bool [N] each.

    Raises:
        NotApplicable: without a calibration.
    """
    if view.calibration is None:
        raise NotApplicable("no calibration: these are the clips that it is made from")
    limit, measured = view.calibration["bounds"], bounds_of(view)
    within = {name: measured[name] <= limit[name] for name in measured}
    read = view.readings.classes.argmax(axis=-1)
    kept = (read == np.median(read, axis=1)[:, None].astype(int)) & (view.readings.presence > 0.5)
    share = share_right(view)
    return {
        "meets all of the caption": share == 1,
        "meets most of it (80%)": share >= 0.8,
        "meets some of it (60%)": share >= 0.6,
        "does not fail completely (40%)": share >= 0.4,
        "starts with the right digit": view.digit_right[:, 0],
        "starts with something recognisable": view.on_manifold[:, 0],
        "keeps its digit throughout": kept.all(axis=1),
        "keeps its digit in most frames": kept.mean(axis=1) >= 0.75,
        "keeps its shape": within["shape_change"],
        "moves or rests as told": attributes(view)["moving"] > 0,
        "moves without jumps": within["jump"],
        "moves by the law": within["unlawful"],
        "stays equally sharp": within["sharpness_change"],
        "has the detail of real clips": within["detail_gap"],
        "shows one digit and nothing else": view.on_manifold.all(axis=1),
        "has a ground of two levels": within["ground_doubt"],
        "lets its ground scroll": within["ground_change"],
    }


def _semantic(view: View) -> np.ndarray:
    """World Semantic [1 + R]: of all clips, then of the resamples."""
    counts = np.vstack([np.ones(view.clips), view.weights])
    columns = []
    for name, values in semantic_table(view).items():
        known = np.isfinite(values)
        if not known.any():
            raise NotApplicable(f"no caption mentions {name}")
        drawn = counts[:, known]
        columns.append(drawn @ values[known] / np.maximum(drawn.sum(axis=1), 1))
    return 100 * np.mean(columns, axis=0)


def total_of(quality_score: np.ndarray, semantic_score: np.ndarray) -> np.ndarray:
    """VBench's Total = (4 Quality + Semantic) / 5."""
    return (4 * quality_score + semantic_score) / 5


@metric("world.total", "World Total", "set", "real = 100", needs=("probe", "calibration"))
def world_total(view: View) -> Measurement:
    """(4 World Quality + World Semantic) / 5."""
    return of_resamples(total_of(quality.qualities(view), _semantic(view)), view.clips)


@metric("world.semantic", "World Semantic", "set", "0..100")
def world_semantic(view: View) -> Measurement:
    """Mean of the attribute accuracies."""
    return of_resamples(_semantic(view), view.clips)


@metric("world.dynamic_digit", "Dynamic (digit)", "sample", "%", higher_is_better=None)
def dynamic_digit(view: View) -> Measurement:
    """Share of clips that show a digit in most frames, nearer to a path of the world than to rest.

    Optical flow, VBench's Dynamic Degree, sees the ground scroll in every clip of this world.
    """
    return per_clip((view.path.moving & shows_a_digit(view)).astype(float), view.seed, 100)


@metric("world.instruct", "World Instruct", "sample", "-100..100")
def world_instruct(view: View) -> Measurement:
    """100 * (2p - 1), p the share of clips that meet at least 60% of their caption."""
    return per_clip(np.where(share_right(view) >= 0.6, 100.0, -100.0), view.seed)


@metric("world.reward", "World Reward", "sample", "-100..100", needs=("probe", "calibration"))
def world_reward(view: View) -> Measurement:
    """100/K * sum of +-1 answers; with the share of yes answers to each question."""
    table = answers(view)
    votes = np.stack([np.where(yes, 100.0, -100.0) for yes in table.values()]).mean(axis=0)
    measured = per_clip(votes, view.seed)
    shares = {question: float(yes.mean()) for question, yes in table.items()}
    return Measurement(measured.value, measured.n, measured.interval, measured.per_clip, shares)


def _register(name: str) -> None:
    @metric(f"world.semantic.{name}", f"{name} right", "sample", "%")
    def _(view: View) -> Measurement:
        return per_clip(semantic_table(view)[name], view.seed, 100)


for _name in SEMANTIC:
    _register(_name)
