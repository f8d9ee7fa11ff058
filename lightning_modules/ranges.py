"""Numbers with their range in the type: the annotations of whatever a recipe can set.

The signature of a stage, a network, a verb or a source says what its settings may be::

    def __init__(self, *, decay: Decay, steps: PositiveInt, **stage: Any) -> None:

and `experiments.runs.signature.bind` refuses everything else, before a run starts. The types are
jsonargparse's. Nothing is checked where code calls code, so tests pass plain numbers. No range
contains NaN or infinity.
"""

from math import inf
from typing import Any, Literal

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeInt,
    PositiveInt,
    restricted_number_type,
)

Finite = restricted_number_type("Finite", float, [(">", -inf), ("<", inf)])
Positive = restricted_number_type("Positive", float, [(">", 0), ("<", inf)])
NonNegative = restricted_number_type("NonNegative", float, [(">=", 0), ("<", inf)])
UnitInterval = ClosedUnitInterval
"""From 0 to 1: a probability, a share, a noise level."""
NoiseLevel = restricted_number_type("NoiseLevel", float, [(">", 0), ("<=", 1)])
"""Of a noisy state; 0 is data."""
Percent = restricted_number_type("Percent", float, [(">=", 0), ("<=", 100)])
Decay = restricted_number_type("Decay", float, [(">=", 0), ("<", 1)])
"""Of an exponential moving average, which at 1 would never move; at 0 it is its last value."""
Seconds = restricted_number_type("Seconds", float, [(">", 0), ("<=", 31_536_000)])
"""A limit of time, at most a year: more overflows the clocks of some libraries."""
SolverSteps = restricted_number_type("SolverSteps", int, [(">=", 1), ("<=", 10_000)])
"""Of a sampler or a time grid; published: 1 to 50."""
FrameRate = restricted_number_type("FrameRate", int, [(">=", 1), ("<=", 1000)])
"""Frames per second."""
WorkerCount = restricted_number_type("WorkerCount", int, [(">=", 0), ("<=", 1024)])
"""Threads or processes on one machine; what 0 means is said where it is used."""
DeviceCount = restricted_number_type("DeviceCount", int, [(">=", 1), ("<=", 65_536)])
"""Devices of a machine, or machines."""
ZeroStage = restricted_number_type("ZeroStage", int, [(">=", 1), ("<=", 3)])
"""What DeepSpeed shards: optimizer state, gradients, weights."""
Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**63)])
"""Of torch's generators."""

Betas = tuple[Decay, Decay]
"""AdamW's averages of the gradient and of its square."""
ClipShape = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
"""``[F, C, H, W]`` of a latent clip."""
Checkpointing = bool | Literal["full"]
"""Of activations: none, all but self-attention's output, or all are recomputed."""
Blocks = str | PositiveInt | list[PositiveInt]
"""Frames per block: a name, a size or a list of sizes (``diffusion/visibility.py``)."""

__all__ = [
    "Betas", "Blocks", "Checkpointing", "ClipShape", "Decay", "DeviceCount", "Finite",
    "FrameRate", "NoiseLevel", "NonNegative", "NonNegativeInt", "Percent", "Positive",
    "PositiveInt", "Seconds", "Seed", "SolverSteps", "UnitInterval", "WorkerCount", "ZeroStage",
    "is_restricted", "range_in_words",
]  # fmt: skip

_WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_WHOLE = {"ge": ("at least", 0), "gt": ("at least", 1), "le": ("at most", 0), "lt": ("at most", -1)}


def is_restricted(kind: Any) -> bool:
    """Whether it is one of the types above, or another of jsonargparse's restricted numbers."""
    return hasattr(kind, "_restrictions")


def range_in_words(kind: Any) -> str:
    """``at least 0 and below 1`` of a restricted type; ``finite`` where a bound is infinity."""
    words = []
    for sign, limit in kind._restrictions:
        word, more = _WHOLE[sign.__name__] if kind._type is int else (_WORDS[sign.__name__], 0)
        words.append("finite" if abs(limit) == inf else f"{word} {limit + more}")
    return " and ".join(dict.fromkeys(words))
