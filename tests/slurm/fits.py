"""``python fits.py WORDS``: ``python -m sweeps run`` of ``deepspeed.yaml``, tiny and impatient.

For ``faults.py``, which kills what it finds of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sweeps import __main__ as command_line
from sweeps.executors import slurm
from sweeps.graph import Sweep, load_sweep

SWEEP = Path(__file__).parent / "deepspeed.yaml"


def sweep() -> Sweep:
    """Sixteen runs, of which eight are fits."""
    return load_sweep(str(SWEEP), "tiny", [0], None)


if __name__ == "__main__":
    slurm.LOOK_EVERY_S, slurm.SETTLE_S, slurm.TRY_AGAIN_S = 0.5, 1.0, 1.0
    sys.exit(command_line.main(["run", str(SWEEP), "--scale", "tiny", *sys.argv[1:]]))
