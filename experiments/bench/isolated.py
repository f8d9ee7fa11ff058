"""A row in a process of its own, which is ended, with all that it started, when it takes too long.

A kernel that hangs, an allocation that the system punishes or a library that aborts then costs one
row. The process hears its order on stdin and answers with a line of JSON a row on stdout; what its
libraries print goes to the log.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from experiments.runs.environment import workers

WORKER = (sys.executable, "-m", "experiments.bench.worker")


@dataclass(frozen=True)
class Answer:
    """What a process said before it ended.

    Args:
        rows: whole ones, in their order.
        error: why it ended early, or ``""``.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""


def ask(
    order: Mapping[str, Any],
    seconds: float,
    log: Path,
    command: Sequence[str] = WORKER,
) -> Answer:
    """Start a process, hand it an order, and collect its rows.

    Args:
        order: for its stdin, as JSON.
        seconds: after which it is killed; what it said until then is kept.
        log: to which its stderr is appended.
        command: of the process.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=workers(os.environ),
            start_new_session=True,  # Ctrl-C reaches this process, which ends the other
        )
    said: list[dict[str, Any]] = []
    try:
        with suppress(BrokenPipeError):  # it died: its status says so
            process.stdin.write(json.dumps(dict(order)).encode())
            process.stdin.close()
        for line in _lines(process, time.monotonic() + seconds):
            said.append(json.loads(line))
        status = process.wait()
    except TimeoutError:
        return _answer(said, f"killed after {seconds:.0f} s, more than its share of the time")
    finally:
        _end(process)
    if status:
        return _answer(said, f"its process ended with status {status}; {log} says more")
    return _answer(said)


def _answer(said: Sequence[Mapping[str, Any]], error: str = "") -> Answer:
    """Of lines with a row, or with the error of the task."""
    failed = [line["error"] for line in said if "row" not in line]
    return Answer([line["row"] for line in said if "row" in line], (*failed, error)[0])


def _lines(process: subprocess.Popen[bytes], end: float) -> Iterator[bytes]:
    """Whole lines of its stdout until it is closed. Raises TimeoutError at ``end``."""
    rest, stdout = b"", process.stdout
    with selectors.DefaultSelector() as events:
        events.register(stdout, selectors.EVENT_READ)
        while True:
            if not events.select(max(0.0, end - time.monotonic())):
                raise TimeoutError
            if not (data := os.read(stdout.fileno(), 2**16)):
                return
            *lines, rest = (rest + data).split(b"\n")
            yield from lines


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process and of its children, those in sessions of their own too."""
    children: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    process.stdout.close()
