"""``python shards.py RUN``: one of the processes that make a run's pairs, a batch to a tar."""

from __future__ import annotations

import sys

from datamodules.signals import interrupt_on_stop
from experiments.launch.execute import execute
from experiments.runs.folder import RunFolder

if __name__ == "__main__":
    interrupt_on_stop()
    execute(RunFolder(sys.argv[1]), package="small_shards")
