"""A pool of decoding processes that prefetches in order and survives crashes.

A decoder is C code reading untrusted files: it may crash, hang, or be killed for its memory, which
breaks the standard pools. Here every process has one item at a time and its own pipe, so that only
the item that caused it is lost.
"""

from __future__ import annotations

import itertools
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from datamodules.curation.refusal import Refused
from datamodules.signals import STOP

Item = TypeVar("Item")
PATIENCE_S = 300.0
DIED = "decoder died"
MOST_DEATHS = 10  # consecutive deaths: then the videos are not the cause


class Workers:
    """Calls a function on items in other processes; use as a context manager.

    The function must be importable: it is called in spawned processes, which import its module and
    not torch. With 0 processes it is called in this one.
    """

    def __init__(
        self, function: Callable[[Item], Any], count: int, patience_s: float = PATIENCE_S
    ) -> None:
        """Start the processes when they are first needed.

        Args:
            function: of one item; a `Refused` that it raises is a result, anything else an error.
            count: processes; 0 for none.
            patience_s: timeout in seconds after which a hanging process is killed.
        """
        self._function, self._count, self._patience_s = function, count, patience_s
        self._workers: list[_Worker] = []
        self._deaths = 0

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()

    def map(self, items: Iterable[Item]) -> Iterator[tuple[Item, Any]]:
        """(item, result) in the order of the items; a result may be a `Refused`.

        At most `count` + 2 results are prefetched.

        Raises:
            RuntimeError: too many processes died consecutively.
        """
        if not self._count:
            yield from ((item, _called(self._function, item)) for item in items)
            return
        while len(self._workers) < self._count:
            self._workers.append(_Worker(self._function))
        coming = enumerate(items)
        waiting: dict[int, Item] = {}  # dispatched, not yet returned
        results: dict[int, Any] = {}
        for wanted in itertools.count():
            results |= self._collect(waiting_s=0.0)  # keeps processes busy while the caller works
            self._give(coming, waiting)
            if wanted not in waiting:
                return
            while wanted not in results:
                results |= self._collect(self._patience_s)
                self._give(coming, waiting)
            item, result = waiting.pop(wanted), results.pop(wanted)
            self._judge(result)
            yield item, result

    def _give(self, coming: Iterator[tuple[int, Item]], waiting: dict[int, Item]) -> None:
        for worker in self._workers:
            if worker.number is None and len(waiting) < self._count + 2:
                for number, item in coming:
                    waiting[number] = item
                    worker.give(number, item)
                    break

    def _judge(self, result: Any) -> None:
        """Raise disk and memory errors and repeated deaths; a bad video is only recorded."""
        if isinstance(result, Exception) and not isinstance(result, Refused):
            raise result
        died = isinstance(result, Refused) and result.reason == DIED
        self._deaths = self._deaths + 1 if died else 0
        if self._deaths > MOST_DEATHS:
            raise RuntimeError(
                f"{self._deaths} decoders died one after the other, the last with: {result.detail};"
                " give the machine more memory, or set launch.workers lower"
            )

    def _collect(self, waiting_s: float) -> dict[int, Any]:
        """Results that arrive within some seconds; dead processes are replaced."""
        busy = [worker for worker in self._workers if worker.number is not None]
        ready = wait([worker.pipe for worker in busy], waiting_s) if busy else []
        results = {}
        for worker in busy:
            if worker.pipe in ready:
                results |= worker.take()
            elif time.monotonic() > worker.since + self._patience_s:
                results |= worker.give_up(f"no result after {self._patience_s:g} s")
        return results


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would take torch's threads along
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._function), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe closes when the process dies
        self.number: int | None = None
        self.since = time.monotonic()

    def give(self, number: int, item: Any) -> None:
        self.number, self.since = number, time.monotonic()
        with suppress(OSError):  # it died while idle: `take` sees the closed pipe
            self.pipe.send(item)

    def take(self) -> dict[int, Any]:
        """The numbered result; if the process died, the error, and a new process is started."""
        try:
            result = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            return self.give_up(f"its decoder died (exit code {self._process.exitcode})")
        number, self.number = self.number, None
        assert number is not None
        return {number: result}

    def give_up(self, why: str) -> dict[int, Any]:
        number = self.number
        assert number is not None
        self.kill()
        self._start()
        return {number: Refused(DIED, why)}

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """Main loop of a process: items in, results out, until the pipe closes."""
    for number in STOP:  # the parent hears them, and ends this process
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        try:
            result = _called(function, item)
        except Exception as error:
            result = error
        pipe.send(result)


def _called(function: Callable[[Item], Any], item: Item) -> Any:
    try:
        return function(item)
    except Refused as refused:
        return refused
