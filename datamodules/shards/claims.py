"""Claims on shards: a locked file next to each, which names the process that makes it.

The kernel releases a lock when its holder ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from datamodules.atomic import flock


class Claims:
    """Of the shards in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def take(self, number: int) -> Iterator[bool]:
        """Whether this process may make shard `number`; always true on a disk without locks."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._file(number), "ab") as claim:
            try:
                flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            claim.truncate(0)
            claim.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            claim.flush()
            yield True

    def holders(self, numbers: Iterable[int]) -> list[str]:
        """Who claimed which of these shards last."""
        claims = [(number, self._file(number)) for number in numbers]
        return [f"shard {n} of {claim.read_text()}" for n, claim in claims if claim.is_file()]

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:06d}.claim"
