"""``python program.py STEP_S WORDS``: ``python -m sweeps run`` of ``library``'s sweep, impatient.

For tests that need the runner as a process, to kill it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.runs.recipe import Library
from sweeps import __main__ as command_line
from sweeps.executors import sbatch, slurm
from sweeps.plan.graph import Sweep, load_sweep

HERE = Path(__file__).parent / "library"
LIBRARY = Library(HERE / "recipes", HERE / "scale")


def sweep(**settings: object) -> Sweep:
    """Seven runs: base; left and right; join; a judge of each of the three."""
    return load_sweep(HERE / "sweep.yaml", "cluster", [0], LIBRARY, settings)


if __name__ == "__main__":
    slurm.LOOK_EVERY_S, slurm.SETTLE_S, slurm.TRY_AGAIN_S = 0.3, 1.0, 1.0
    sbatch.WITHIN_S = 3
    step_s, *words = sys.argv[1:]
    command_line.load_sweep = lambda *_: sweep(step_s=float(step_s))
    sys.exit(command_line.main(["run", "--package", "fixture_verbs", *words], LIBRARY))
