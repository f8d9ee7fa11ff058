"""A worker: a process that checks and executes runs, one after another, for a runner.

Start-up (importing torch and Lightning) costs more than a tiny run, so it is paid once. Commands
are JSON lines on stdin, events JSON lines on the original stdout; output of a verb goes to its
run's log. A worker ends with its runner: when the pipe closes, or, on Linux, by the kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from datamodules.signals import heard
from experiments.launch.checks import problem
from experiments.launch.execute import execute, verb_module
from experiments.launch.ranks.die_with_parent import die_with_parent
from experiments.launch.ranks.launcher import RankLost
from experiments.runs.environment import settle
from experiments.runs.errors import told
from experiments.runs.folder import Busy, RunFolder

PROGRESS_EVERY_S = 0.25


def main() -> None:
    """Serve commands until told to exit or until the runner ends."""
    parser = argparse.ArgumentParser(description="Serves one runner; not meant to be typed.")
    parser.add_argument(
        "--package", default="experiments.verbs", help="where the verbs' modules are"
    )
    package = parser.parse_args().package
    die_with_parent()
    stop = _Stop()
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    logging.getLogger().addHandler(logging.NullHandler())  # Lightning then adds no handler itself
    commands: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(_take_stdin(), commands), daemon=True).start()

    def answer(event: str, **more: Any) -> None:
        answers.write(json.dumps({"event": event, **more}) + "\n")

    while (command := commands.get())["do"] != "exit":
        if command["do"] == "check":
            answer("checked", text=_check(command["recipe"], package))
        else:
            event, text = _run(RunFolder(command["folder"]), package, answer, stop)
            answer(event, text=text)


class _Stop:
    """Stop signals: they interrupt the active run, or the next one if none is active."""

    def __init__(self) -> None:
        self._asked = False
        self._listen(self._keep)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Context of a run, which can be interrupted. Raises KeyboardInterrupt."""
        self._listen(signal.default_int_handler)
        try:
            if self._asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._listen(self._keep)

    def _listen(self, handler: Callable[[int, Any], Any]) -> None:
        for number in heard():
            signal.signal(number, handler)

    def _keep(self, number: int, frame: Any) -> None:
        self._asked = True


def _check(recipe: dict[str, Any], package: str) -> str:
    """What is wrong with a recipe, or ""."""
    with contextlib.suppress(Exception):  # `problem` says what is wrong
        _load(recipe["verb"], package)
    return problem(recipe, package)


def _run(folder: RunFolder, package: str, answer: Any, stop: _Stop) -> tuple[str, str]:
    last = 0.0

    def progress(done: int, total: int, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_EVERY_S:
            last = time.monotonic()
            answer("progress", done=done, total=total, text=note)

    try:
        with stop.interrupting(), output_to(folder.path / "log.txt"):
            with contextlib.suppress(Exception):  # execute raises it again, and reports it
                _load(folder.recipe["verb"], package)
            executed = execute(folder, progress, package)
    except KeyboardInterrupt as asked:
        return "interrupted", str(asked) or f"{folder.name} had not started"
    except Busy as busy:
        return "busy", str(busy)
    except RankLost as lost:
        return "died", str(lost)
    except BaseException as error:
        return "failed", told(error)
    return ("done" if executed else "found"), ""


def _load(verb: str, package: str) -> Any:
    module = verb_module(verb, package)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    return module


@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Everything the process writes to stdout or stderr goes to the run's log meanwhile."""
    with open(path, "ab") as log:
        before = os.dup(2)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(before, 1)
            os.dup2(before, 2)
            os.close(before)


def _take_stdin() -> IO[str]:
    """The pipe of commands. A forked loader of data closes its stdin, and would wait for ever for
    the thread that reads from it here.
    """
    pipe = os.fdopen(os.dup(0), encoding="utf-8")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return pipe


def _listen(pipe: IO[str], commands: queue.Queue[dict[str, Any]]) -> None:
    for line in pipe:
        commands.put(json.loads(line))
    os._exit(1)  # the runner has ended; the run can be resumed from its last checkpoint


if __name__ == "__main__":
    settle()
    main()
