"""One rank of a run, started by ``launcher.py``; not for the command line."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence

from experiments.launch.execute import execute
from experiments.launch.ranks.die_with_parent import die_with_parent
from experiments.launch.ranks.launcher import BUSY, INTERRUPTED, LOST, lost_peer
from experiments.runs.environment import settle
from experiments.runs.folder import RunFolder
from experiments.runs.lock import Busy


def main(arguments: Sequence[str]) -> int:
    """``<run folder> <file descriptor to report to> <package of the verbs> <parent's process>``."""
    path, descriptor, package, parent = arguments
    die_with_parent(int(parent))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm's warning; the launcher handles it
    if os.environ.get("RANK", "0") == "0":  # other ranks' output goes to their log file
        console = logging.StreamHandler()
        console.addFilter(lambda record: not record.exc_info)  # that is in the log
        logging.basicConfig(format="%(message)s", level=logging.INFO, handlers=[console])
    with open(int(descriptor), "w", buffering=1, encoding="utf-8") as report:

        def tell(**message: object) -> None:
            report.write(json.dumps(message) + "\n")

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
            tell(end="".join(traceback.format_exception(error)), time=time.time())
            return LOST if lost_peer(error) else 1
    return 0


if __name__ == "__main__":
    settle()
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # libraries' exit handlers may wait for ranks that are gone
