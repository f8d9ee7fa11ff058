"""Metrics of real videos that need no weights; those that do are registered as "not run".

VBench and VisionReward need downloaded networks and environments of their own, so their columns
are "not run" here: the score run lays the videos out for them (`vbench.py`), and
`python -m experiments results` reads what they wrote (`results.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from experiments.metrics import motion
from experiments.metrics.registry import Measurement, NotApplicable, metric
from experiments.worlds.digits.quality import per_clip
from experiments.worlds.wan.benchmarks import DIMENSIONS


@dataclass(frozen=True)
class Videos:
    """Inputs of the metrics.

    Args:
        magnitudes: px/frame of each clip's kept neighbours [N, K-1], as `motion.fastest` has them.
        rule: VBench's dynamic rule for these clips.
        seed: of the bootstrap.
    """

    magnitudes: np.ndarray
    rule: motion.DynamicRule
    seed: int


@metric("videos.dynamic_dis", "Dynamic (DIS), raw", "sample", "%", None, needs=("videos",))
def dynamic(view: Videos) -> Measurement:
    """Share of dynamic clips by VBench's rule, with DIS for RAFT; noise counts as motion."""
    return per_clip(motion.dynamic(view.magnitudes, view.rule).astype(float), view.seed, 100)


@metric("videos.speed_dis", "Speed (DIS)", "sample", "px/frame", None, needs=("videos",))
def speed(view: Videos) -> Measurement:
    """Mean speed of the fastest 5% of pixels."""
    return per_clip(view.magnitudes.mean(axis=1).astype(float), view.seed, 1)


def _elsewhere(id: str, name: str, unit: str, tool: str) -> Callable[[Videos], Measurement]:
    @metric(id, name, "set", unit, kind="exact", needs=("videos",))
    def compute(view: Videos) -> Measurement:
        raise NotApplicable(f"not run: {tool} needs weights and an environment of its own")

    return compute


for _id, _name, _unit, _tool in (
    ("vbench.total", "VBench Total", "x100", "VBench"),
    ("vbench.quality", "VBench Quality", "x100", "VBench"),
    ("vbench.semantic", "VBench Semantic", "x100", "VBench"),
    ("vbench.dynamic", "Dynamic Degree", "%", "VBench"),
    ("vision_reward.score", "VisionReward", "x100", "VisionReward"),
    ("vision_reward.instruct", "Instruct", "x100", "VisionReward"),
    *((f"vbench.{id}", f"VBench {id.replace('_', ' ')}", "x100", "VBench") for id in DIMENSIONS),
):
    _elsewhere(_id, _name, _unit, _tool)
