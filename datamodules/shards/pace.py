"""How long an item takes that comes in batches: the time left of whoever makes shards."""

from __future__ import annotations

PAUSE_S = 0.2  # between two items of different batches, at least
STEADY_S = 1.0  # no batch takes longer to be written


class Pace:
    """Seconds for an item, of items that may come in batches: a batch that has only begun to come
    is made already, so only what came before it says how long an item takes.

    Args:
        before: items that were there at the start.
        started: the time then [s].
    """

    def __init__(self, before: int, started: float) -> None:
        self._start = self._last = self._batch_end = (before, started)
        self._batch_start = started

    def arrived(self, done: int, now: float) -> None:
        """Note an item, the ``done``-th, that is there now."""
        if now - self._last[1] > PAUSE_S:
            self._batch_end, self._batch_start = self._last, now
        self._last = done, now

    def seconds_each(self, done: int, now: float) -> float | None:
        """Seconds for each item of the rest; None while it cannot be known."""
        steady = now - self._batch_start > STEADY_S
        (made, at), (before, started) = (done, now) if steady else self._batch_end, self._start
        return (at - started) / (made - before) if made > before else None
