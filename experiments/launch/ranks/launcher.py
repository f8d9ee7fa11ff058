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

from experiments.launch.ranks.topology import Place
from experiments.runs.folder import RunFolder
from experiments.runs.lock import Busy

POLL_S = 0.1
GRACE_S = 3.0  # for the others to end by themselves, so that the first error is known
INTERRUPTED, BUSY, LOST = 130, 3, 4  # exit statuses of a rank, beside 0 and 1
_OWN_FAULT = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
"""What the kernel ends a rank with for its own mistake. Other signals come from outside, apart from
SIGABRT: NCCL's watchdog aborts a rank whose peers are gone or silent."""
_PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "Connection refused")
_DISTRIBUTED = ("DistBackendError", "DistNetworkError", "DistStoreError")
"""Torch's errors of NCCL, of the way to the first rank, and of ranks that do not come there."""


class RankLost(ChildProcessError):
    """A rank was killed from outside; the run can be continued from its last checkpoint."""


def lost_peer(error: BaseException | None) -> bool:
    """Whether a rank failed only because another one is gone, or silent for too long."""
    while error is not None:
        if type(error).__name__ in _DISTRIBUTED:
            return True
        said = str(error)
        if "gloo" in said and any(words in said for words in (*_PEER_GONE, "Timed out")):
            return True
        error = error.__cause__
    return False


def execute_ranks(
    folder: RunFolder,
    places: list[Place],
    progress: Callable[[int, int, str], None] | None = None,
    package: str = "experiments.verbs",
) -> bool:
    """Execute a run by these ranks; returns and raises as `execute.execute` does.

    Raises:
        RankLost: a rank was killed, or has lost the others.
        ChildProcessError: a rank failed; failed.txt says how.
    """
    stale = _written(folder)
    with ExitStack() as stack:
        ranks: list[_Rank] = []
        for place in places:
            ranks.append(_Rank(folder, place, progress, package))
            stack.callback(ranks[-1].end)
        asked = False
        while any(rank.code is None for rank in ranks):
            try:
                if any(rank.code for rank in ranks) or _written(folder) not in (0, stale):
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
        new = _written(folder) not in (0, stale)  # an earlier attempt's stays until the first rank
        return _judge(folder, ranks, asked, folder.failure() if new else "")


def _judge(folder: RunFolder, ranks: list[_Rank], asked: bool, failure: str) -> bool:
    """What the ranks' ends mean together: one that was killed explains the errors of the others;
    an error of a rank's own, or of ``failure`` on another node, explains those that were lost, and
    so does having been asked to stop.
    """
    for rank in ranks:
        if rank.code == BUSY:
            raise Busy(rank.words)
    if all(rank.code == 0 for rank in ranks):
        return True
    killed = next((rank for rank in ranks if rank.killed), None)
    if killed and failure:
        folder.clear_failure()
    failed = [rank for rank in ranks if rank.failed]
    if (failed or failure) and not killed:
        first = min(failed, key=lambda rank: rank.told, default=None)
        why = (first.words if first else failure) or "ended without a word"
        where = first.place if first else "another node"
        folder.mark_failed(f"{where}:\n{why}")
        raise ChildProcessError(f"{where}: {why.splitlines()[-1]}")
    if asked or (not killed and any(rank.code == INTERRUPTED for rank in ranks)):
        told = [rank.words for rank in ranks if rank.code == INTERRUPTED and rank.words]
        raise KeyboardInterrupt(next(iter(told), ""))
    if killed:
        raise RankLost(f"{killed.place} was ended by {signal.Signals(-killed.code).name}")
    lost = next((rank for rank in ranks if rank.lost), ranks[0])
    said = (lost.words.splitlines() or ["it was aborted without a word"])[-1]
    raise RankLost(f"{lost.place} has lost another process, or the way to it: {said}")


def _written(folder: RunFolder) -> int:
    """When the failure on disk was, 0 for none; another node's ranks tell of theirs so."""
    try:
        return (folder.path / "failed.txt").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


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
        words = ["-m", "experiments.launch.ranks", str(folder.path), str(write), package]
        words.append(str(os.getpid()))
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

    @property
    def lost(self) -> bool:
        """Whether it has ended since the others are gone, as far as it knows."""
        return self.code == LOST or (self.code == -signal.SIGABRT and not self.words)

    @property
    def killed(self) -> bool:
        """Whether somebody else than us has ended it by a signal."""
        mine = self.code is None or self.code >= 0 or self.ended
        return not (mine or -self.code in (signal.SIGABRT, *_OWN_FAULT))

    @property
    def failed(self) -> bool:
        """Whether it has ended by an error of its own."""
        well = self.code in (0, INTERRUPTED) or self.ended
        return not (well or self.killed or self.lost)

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
