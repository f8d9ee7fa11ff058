"""``python fits.py SWEEP SCALE WORDS``: ``python -m sweeps run``, of real runs, impatient.

For tests that need the runner as a process, and for ``faults.py``, which kills what it finds of it.
"""

from __future__ import annotations

import sys

from sweeps import __main__ as command_line
from sweeps.executors import slurm

if __name__ == "__main__":
    slurm.LOOK_EVERY_S, slurm.SETTLE_S, slurm.TRY_AGAIN_S = 0.5, 1.0, 1.0
    sweep, scale, *words = sys.argv[1:]
    sys.exit(command_line.main(["run", sweep, "--scale", scale, *words]))
