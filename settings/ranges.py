"""Numbers with the range in their type: the annotations of everything that a recipe can set.

A signature says what its settings may be (``def __init__(self, *, decay: Decay, steps: PositiveInt)``)
and `experiments.runs.signature.bind` refuses everything else when the recipe is checked. The types
are jsonargparse's; no range holds NaN or an infinity. Code that calls a function directly passes
plain numbers: nothing is checked there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeInt,
    PositiveInt,
    restricted_number_type,
)

__all__ = [
    "Betas",
    "Blocks",
    "ClipShape",
    "ClosedUnitInterval",
    "Decay",
    "Finite",
    "FrameRate",
    "NonNegative",
    "NonNegativeInt",
    "Percent",
    "Positive",
    "PositiveInt",
    "ProcessCount",
    "Seconds",
    "Seed",
    "SolverSteps",
    "WorkerCount",
    "ZeroStage",
    "range_of",
]

_INF = math.inf


Finite = restricted_number_type("Finite", float, [(">", -_INF), ("<", _INF)])
Positive = restricted_number_type("Positive", float, [(">", 0), ("<", _INF)])
NonNegative = restricted_number_type("NonNegative", float, [(">=", 0), ("<", _INF)])
Percent = restricted_number_type("Percent", float, [(">=", 0), ("<=", 100)])
Decay = restricted_number_type("Decay", float, [(">=", 0), ("<", 1)])
"""Of a moving average: at 1 it would never move."""
Seconds = restricted_number_type("Seconds", float, [(">", 0), ("<=", 31_536_000)])
"""A limit in time; libraries count it in milliseconds or less, and more than a year overflows some."""
SolverSteps = restricted_number_type("SolverSteps", int, [(">=", 1), ("<=", 10_000)])
"""Points of a time grid; published 1 to 50."""
FrameRate = restricted_number_type("FrameRate", int, [(">=", 1), ("<=", 1000)])
"""Frames per second, whole numbers only: video files hold them as fractions of one."""
WorkerCount = restricted_number_type("WorkerCount", int, [(">=", 0), ("<=", 1024)])
"""Threads or processes of one machine; 0 has a meaning of its own."""
ProcessCount = restricted_number_type("ProcessCount", int, [(">=", 1), ("<=", 65_536)])
"""Machines, or devices of one machine."""
ZeroStage = restricted_number_type("ZeroStage", int, [(">=", 1), ("<=", 3)])
Seed = restricted_number_type("Seed", int, [(">=", 0), ("<=", 2**63 - 1)])
"""What torch's generators take."""

Betas = tuple[Decay, Decay]
"""AdamW's two decays."""
ClipShape = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
"""``[F, C, H, W]`` of a latent clip."""
Blocks = str | PositiveInt | list[PositiveInt]
"""Frames per block: a name, a size or a list of sizes (`lightning_modules.diffusion.visibility`)."""
