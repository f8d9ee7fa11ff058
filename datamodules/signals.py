"""The signals that ask a process to stop, and what a second one does.

The first signal is a request: a fit saves at the end of its step, everything else is interrupted
(KeyboardInterrupt). A second one ends a process that cannot end its step, because it waits in a
library's call for a disk, a lock or a lost peer.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, kill and a scheduler, a closed terminal."""
APART_S = 5.0
"""Seconds by which a second signal must be later than the first to count as one. Clusters and
closing terminals send several within moments; whoever presses Ctrl-C again means it at once.
"""
GRACE_S = 5.0  # for Python to end by itself after the second signal


def heard() -> list[signal.Signals]:
    """The stop signals that this process shall hear: all, but for nohup's ignored SIGHUP."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOP if not (ignored and number == signal.SIGHUP)]


def interrupt_on_stop() -> None:
    """Raise KeyboardInterrupt on every stop signal, also in a process started in the background."""
    for number in heard():
        signal.signal(number, signal.default_int_handler)


def insists(number: int, first: int, since_first_s: float) -> bool:
    """Whether a further signal, so long after the first one, shall end the process at once.

    Slurm's SIGTERM never does: it warns before a time limit, terms at it, and kills by itself what
    has not saved half a minute later.
    """
    if number == first == signal.SIGINT:
        return True
    by_slurm = number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ
    return since_first_s >= APART_S and not by_slurm


def end_at_second_stop(say: str, status: int) -> None:
    """From now on a second stop signal ends this process, even while a library's call holds it.

    Python's handlers wait for such a call to return. The kernel's byte in the wakeup pipe does not:
    a thread reads it. Call it once, in the main thread.

    Args:
        say: printed to stderr when the process has to be ended.
        status: its exit status then.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read, say, status), daemon=True).start()


def _watch(pipe: int, say: str, status: int) -> None:
    first, since = 0, 0.0
    while byte := os.read(pipe, 1):
        if byte[0] not in STOP:
            continue
        now = time.monotonic()
        if not first:
            first, since = byte[0], now
        elif insists(byte[0], first, now - since):
            time.sleep(GRACE_S)
            print(say, file=sys.stderr, flush=True)
            os._exit(status)
