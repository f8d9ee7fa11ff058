"""Starting a run's ranks on this node and living with them: all end well, or none goes on.

The process that does this holds no lock and writes no record; rank 0 does. It passes on what rank 0
reports, asks every rank to save when it is interrupted, and when one rank is lost it ends the
others, which would wait for it for ever. Ranks end with it (on Linux by the kernel).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from experiments.folder import RunFolder
from experiments.launch.place import Place
from experiments.lease import Busy

POLL_S = 0.1
GRACE_S = 3.0  # for the others to end by themselves, so that the first error is known
INTERRUPTED, BUSY, LOST = 130, 3, 4  # exit statuses of a rank, beside 0 and 1
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)
"""What ends a rank that did nothing wrong; NCCL's watchdog aborts one after another's error."""
_PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "Connection refused")


class RankLost(ChildProcessError):
    """A rank was killed from outside; the run can be continued from its last checkpoint."""


def lost_peer(error: BaseException) -> bool:
    """Whether a rank failed only because another one is gone, or silent for too long."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError"):  # NCCL, the store
        return True
    said = str(error)
    return "gloo" in said and any(words in said for words in (*_PEER_GONE, "Timed out"))


def execute_ranks(
    folder: RunFolder,
    places: list[Place],
    progress: Callable[[int, int, str], None] | None = None,
    package: str = "experiments",
) -> bool:
    """Execute a run by these ranks; returns and raises as `execute.execute` does.

    Raises:
        RankLost: a rank was killed.
        ChildProcessError: a rank failed; failed.txt says how.
    """
    stale = _failure(folder)
    with ExitStack() as stack:
        ranks = [_Rank(folder, place, progress, package) for place in places]
        for rank in ranks:
            stack.callback(rank.end)
        asked = False
        while any(rank.code is None for rank in ranks):
            try:
                if any(rank.code for rank in ranks) or _failure(folder) not in ("", stale):
                    _wait(ranks, GRACE_S)
                    break
                time.sleep(POLL_S)
            except KeyboardInterrupt:
                if asked:
                    break  # once more: at once
                asked = True
                for rank in ranks:
                    rank.ask()
        for rank in ranks:
            rank.end()
        return _judge(folder, ranks, asked)


def _judge(folder: RunFolder, ranks: list[_Rank], asked: bool) -> bool:
    """What the ranks' ends mean together: one that was killed explains the errors of the others."""
    for rank in ranks:
        if rank.code == BUSY:
            raise Busy(rank.words)
    if all(rank.code == 0 for rank in ranks):
        return True
    for rank in ranks:
        if -rank.code in _FROM_OUTSIDE and not rank.ended:
            folder.clear_failure()
            raise RankLost(f"{rank.place} was ended by {signal.Signals(-rank.code).name}")
    failed = [r for r in ranks if r.code not in (0, INTERRUPTED, LOST) and not r.ended]
    lost = next((rank for rank in ranks if rank.code == LOST), None)
    if not failed and not folder.failure() and lost:
        said = (lost.words.splitlines() or ["no reason given"])[-1]
        raise RankLost(f"a process on another node was lost, or the way to it: {said}")
    if not failed and (asked or any(rank.code == INTERRUPTED for rank in ranks)):
        raise KeyboardInterrupt(next((rank.words for rank in ranks if rank.words), ""))
    first = min(failed, key=lambda rank: rank.told, default=None)
    why = (first.words if first else folder.failure()) or "ended without a word"
    where = first.place if first else "another node"
    folder.mark_failed(f"{where}:\n{why}")
    raise ChildProcessError(f"{where}: {why.splitlines()[-1]}")


def _failure(folder: RunFolder) -> str:
    """The failure on disk and when it was written; another node's ranks tell of theirs so."""
    try:
        return f"{(folder.path / 'failed.txt').stat().st_mtime_ns}"
    except FileNotFoundError:
        return ""


def _wait(ranks: list[_Rank], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while any(rank.code is None for rank in ranks) and time.monotonic() < end:
        time.sleep(POLL_S)


class _Rank:
    """One rank's process. What it prints goes to the screen (rank 0) or to log.rank<N>.txt."""

    def __init__(
        self,
        folder: RunFolder,
        place: Place,
        progress: Callable[[int, int, str], None] | None,
        package: str,
    ) -> None:
        self.place, self.words, self.told = place, "", float("inf")
        self.ended = False  # by us
        read, write = os.pipe()
        words = ["-m", "experiments.launch.rank", str(folder.path), str(write), package]
        with ExitStack() as stack:
            output = None
            if place.rank:
                output = stack.enter_context(open(folder.path / f"log.rank{place.rank}.txt", "ab"))
            self.process = subprocess.Popen(
                [sys.executable, *words],
                env={**os.environ, **place.environment()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[write],
                start_new_session=True,  # Ctrl-C reaches this process, which asks the ranks to save
            )
            os.close(write)
        self._listener = threading.Thread(target=self._listen, args=(read, progress), daemon=True)
        self._listener.start()

    @property
    def code(self) -> int | None:
        """The exit status, None while it lives."""
        return self.process.poll()

    def ask(self) -> None:
        """Ask it to save and stop."""
        if self.code is None:
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Be sure that it has ended and that everything it said has been heard."""
        if self.code is None:
            self.ended = True
            self.process.kill()
        self.process.wait()
        self._listener.join(1.0)

    def _listen(self, pipe: int, progress: Callable[[int, int, str], None] | None) -> None:
        with os.fdopen(pipe) as lines:
            for line in lines:
                message: dict[str, Any] = json.loads(line)
                if "end" in message:
                    self.words, self.told = message["end"], message["time"]
                elif progress is not None:
                    progress(*message["progress"])
