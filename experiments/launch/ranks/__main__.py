"""One rank of a run, started by ``launcher.py``; not for the command line."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence

from datamodules.signals import interrupt_on_stop
from experiments.launch.execute import execute
from experiments.launch.ranks.die_with_parent import die_with_parent
from experiments.launch.ranks.launcher import BUSY, INTERRUPTED, LOST, lost_peer
from experiments.launch.run_log import log_to_console
from experiments.runs.environment import settle
from experiments.runs.errors import report
from experiments.runs.folder import RunFolder
from experiments.runs.lock import Busy


def main(arguments: Sequence[str]) -> int:
    """``<run folder> <file descriptor to report to> <package of the verbs> <parent's process>``."""
    path, descriptor, package, parent = arguments
    die_with_parent(int(parent))
    interrupt_on_stop()
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm's warning; the launcher handles it
    if os.environ.get("RANK", "0") == "0":  # other ranks' output goes to their log file
        log_to_console()
    with open(int(descriptor), "w", buffering=1, encoding="utf-8") as pipe:

        def tell(**message: object) -> None:
            pipe.write(json.dumps(message) + "\n")

        def progress(done: int, total: int, note: str = "") -> None:
            tell(progress=(done, total, note))

        try:
            execute(RunFolder(path), progress, package)
        except KeyboardInterrupt as stop:
            tell(end=str(stop), time=time.time())
            return INTERRUPTED
        except Busy as busy:
            tell(end=str(busy), time=time.time())
            return BUSY
        except BaseException as error:
            tell(end=report(error), time=time.time())
            return LOST if lost_peer(error) else 1
    return 0


if __name__ == "__main__":
    settle()
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # libraries' exit handlers may wait for ranks that are gone
