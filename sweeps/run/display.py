"""Display of a running sweep: progress bars on a terminal, a line per event elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from experiments.runs.recipe import Run
from sweeps.plan.costs import duration, forecast


class Lines:
    """One line per event, for logs and pipes."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._count = ""
        self._started: dict[str, float] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def say(self, text: str) -> None:
        print(f"[{duration(time.monotonic() - self._begin):>5}] {text}", flush=True)

    def started(self, run: Run) -> None:
        self._started[run.name] = time.monotonic()
        self.say(f"{self._count}start  {run.name}")

    def progress(self, run: Run, done: int, total: int, note: str) -> None:
        """Not shown in logs."""

    def ended(self, run: Run, state: str, text: str) -> None:
        begun = self._started.pop(run.name, None)
        took = f" ({duration(time.monotonic() - begun)})" if begun is not None else ""
        self.say(f"{self._count}{state:6} {run.name}{took}{': ' if text else ''}{text}")

    def overall(self, done: int, total: int, left_s: float, known: bool) -> None:
        self._count = f"{done}/{total}, {forecast(left_s, known)}: "


class Bars:
    """One bar for the sweep and one for each active run."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[note]}"),
            console=Console(),
            transient=True,
        )
        self._all = self._bars.add_task("sweep", total=None, count="", note="")
        self._tasks: dict[str, tuple[int, float]] = {}
        self._begin = time.monotonic()

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        self._bars.console.print(escape(text), highlight=False, soft_wrap=True)

    def started(self, run: Run) -> None:
        task = self._bars.add_task(f"  {run.name}", total=None, count="", note="starting")
        self._tasks[run.name] = (task, time.monotonic())

    def progress(self, run: Run, done: int, total: int, note: str) -> None:
        task, begun = self._tasks[run.name]
        now = time.monotonic()
        eta = f"{duration((now - begun) / done * (total - done))} left" if done else ""
        note = escape(" ".join(filter(None, [eta, note])))
        self._bars.update(task, completed=done, total=total, count=f"{done}/{total}", note=note)

    def ended(self, run: Run, state: str, text: str) -> None:
        task, begun = self._tasks.pop(run.name, (None, None))
        took = ""
        if task is not None:
            self._bars.remove_task(task)
            took = f" ({duration(time.monotonic() - begun)})"
        self.say(f"{state:6} {run.name}{took}{': ' if text else ''}{text}")

    def overall(self, done: int, total: int, left_s: float, known: bool) -> None:
        so_far = duration(time.monotonic() - self._begin)
        note = f"{so_far} so far, {forecast(left_s, known)}"
        self._bars.update(
            self._all, completed=done, total=total, count=f"{done}/{total} runs", note=note
        )


def display() -> Lines | Bars:
    """Bars on an interactive terminal, else lines."""
    return Bars() if sys.stdout.isatty() else Lines()
