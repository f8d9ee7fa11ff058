"""Launch the ranks of a run on this node and monitor them: if one rank fails, all are stopped.

The launcher holds no lock and writes no record; rank 0 does. It forwards rank 0's progress, asks
every rank to save a checkpoint when it is interrupted, and stops the other ranks when one is lost,
as they would wait for it forever. Ranks die with the launcher (on Linux, by the kernel).
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

from experiments.launch.ranks.topology import Topology
from experiments.runs.folder import RunFolder
from experiments.runs.lock import Busy

POLL_S = 0.1
GRACE_S = 3.0  # for the others to exit by themselves, so that the first error is known
INTERRUPTED, BUSY, LOST = 130, 3, 4  # exit statuses of a rank, besides 0 and 1
_OWN_FAULT = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
"""Signals for a rank's own errors. Others come from outside, except SIGABRT: NCCL's watchdog aborts
a rank whose peers are gone or time out."""
_PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "Connection refused")
_DISTRIBUTED = ("DistBackendError", "DistNetworkError", "DistStoreError")
"""Torch's errors of NCCL, of the connection to rank 0, and of the rendezvous."""


class RankLost(ChildProcessError):
    """A rank was killed from outside; the run can be resumed from its last checkpoint."""


def lost_peer(error: BaseException | None) -> bool:
    """Whether a rank failed only because another one is gone or timed out."""
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
    topologies: list[Topology],
    progress: Callable[[int, int, str], None] | None = None,
    package: str = "experiments.verbs",
) -> bool:
    """Execute a run with these ranks; returns and raises as `execute.execute` does.

    Raises:
        RankLost: a rank was killed, or lost its connection to the others.
        ChildProcessError: a rank failed; failed.txt says how.
    """
    stale = _written(folder)
    with ExitStack() as stack:
        ranks: list[_Rank] = []
        for topology in topologies:
            ranks.append(_Rank(folder, topology, progress, package))
            stack.callback(ranks[-1].end)
        stopping = False
        while any(rank.code is None for rank in ranks):
            try:
                if any(rank.code for rank in ranks) or _written(folder) not in (0, stale):
                    _wait(ranks, GRACE_S)
                    break
                time.sleep(POLL_S)
            except KeyboardInterrupt:
                if stopping:
                    break  # the second interrupt stops at once
                stopping = True
                print(f"{folder.name} saves and stops; again stops at once", file=sys.stderr)
                for rank in ranks:
                    rank.request_stop()
        for rank in ranks:
            rank.end()
        new = _written(folder) not in (0, stale)  # rank 0 clears that of an earlier attempt
        return _outcome(folder, ranks, stopping, folder.failure() if new else "")


def _outcome(folder: RunFolder, ranks: list[_Rank], stopping: bool, failure: str) -> bool:
    """The run's result from its ranks' exits, by root cause: a killed rank explains the errors of
    the others; a rank's own error, a ``failure`` on another node, or a requested stop explains lost
    connections.
    """
    for rank in ranks:
        if rank.code == BUSY:
            raise Busy(rank.message)
    if all(rank.code == 0 for rank in ranks):
        return True
    killed = next((rank for rank in ranks if rank.killed), None)
    if killed and failure:
        folder.clear_failure()
    failed = [rank for rank in ranks if rank.failed]
    if (failed or failure) and not killed:
        first = min(failed, key=lambda rank: rank.ended_at, default=None)
        why = (first.message if first else failure) or "exited without a message"
        where = first.topology if first else "another node"
        folder.mark_failed(f"{where}:\n{why}")
        raise ChildProcessError(f"{where}: {why.splitlines()[-1]}")
    if stopping or (not killed and any(rank.code == INTERRUPTED for rank in ranks)):
        messages = [rank.message for rank in ranks if rank.code == INTERRUPTED and rank.message]
        raise KeyboardInterrupt(next(iter(messages), ""))
    if killed:
        raise RankLost(f"{killed.topology} was killed by {signal.Signals(-killed.code).name}")
    lost = next((rank for rank in ranks if rank.lost), ranks[0])
    said = (lost.message.splitlines() or ["it was aborted without a message"])[-1]
    raise RankLost(f"{lost.topology} lost another rank, or the connection to it: {said}")


def _written(folder: RunFolder) -> int:
    """Modification time (ns) of failed.txt, 0 for none; it tells of failures on other nodes."""
    try:
        return (folder.path / "failed.txt").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _wait(ranks: list[_Rank], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while any(rank.code is None for rank in ranks) and time.monotonic() < end:
        time.sleep(POLL_S)


class _Rank:
    """One rank's process. Its output goes to the screen (rank 0) or to log.rank<N>.txt."""

    def __init__(
        self,
        folder: RunFolder,
        topology: Topology,
        progress: Callable[[int, int, str], None] | None,
        package: str,
    ) -> None:
        self.topology, self.message, self.ended_at = topology, "", float("inf")
        self.stopped = False  # by the launcher
        read, write = os.pipe()
        arguments = ["-m", "experiments.launch.ranks", str(folder.path), str(write), package]
        arguments.append(str(os.getpid()))
        with ExitStack() as stack:
            output = None
            if topology.rank:
                output = stack.enter_context(
                    open(folder.path / f"log.rank{topology.rank}.txt", "ab")
                )
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                env={**os.environ, **topology.environment()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[write],
                start_new_session=True,  # Ctrl-C reaches the launcher, which asks the ranks to save
            )
            os.close(write)
        self._listener = threading.Thread(target=self._listen, args=(read, progress), daemon=True)
        self._listener.start()

    @property
    def code(self) -> int | None:
        """The exit status, None while it runs."""
        return self.process.poll()

    @property
    def lost(self) -> bool:
        """Whether it exited because another rank was gone."""
        return self.code == LOST or (self.code == -signal.SIGABRT and not self.message)

    @property
    def killed(self) -> bool:
        """Whether it was killed by a signal that the launcher did not send."""
        mine = self.code is None or self.code >= 0 or self.stopped
        return not (mine or -self.code in (signal.SIGABRT, *_OWN_FAULT))

    @property
    def failed(self) -> bool:
        """Whether it exited by an error of its own."""
        well = self.code in (0, INTERRUPTED) or self.stopped
        return not (well or self.killed or self.lost)

    def request_stop(self) -> None:
        """Ask it to save a checkpoint and exit; there is no timeout on saving."""
        if self.code is None:
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Kill it if it still runs; wait for its exit and its last message."""
        if self.code is None:
            self.stopped = True
            self.process.kill()
        self.process.wait()
        self._listener.join(1.0)

    def _listen(self, pipe: int, progress: Callable[[int, int, str], None] | None) -> None:
        with os.fdopen(pipe, encoding="utf-8") as lines:
            for line in lines:
                message: dict[str, Any] = json.loads(line)
                if "end" in message:
                    self.message, self.ended_at = message["end"], message["time"]
                elif progress is not None:
                    progress(*message["progress"])
