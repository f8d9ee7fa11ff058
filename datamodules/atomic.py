"""Files on disks that several processes see: written whole or not at all, and locked."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def growing(path: Path) -> Path:
    """Where a file of one writer grows. One name: what a killed process leaves is written over."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def replacing(path: Path, many: bool = False) -> Iterator[Path]:
    """A neighbour of ``path`` to be written; it takes its name, synced, when the block ends.

    So ``path`` holds its old content or all of the new, never a part, and its old content if the
    block raises.

    Args:
        many: several processes may write at a time, so each gets a name of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp") if many else growing(path)
    try:
        yield part
        sync(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, many: bool = False) -> None:
    """Write a file whole or not at all; see `replacing`."""
    with replacing(path, many) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """The same of UTF-8 text, of which any process may be the writer."""
    write_bytes(path, text.encode(), many=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flock(file: int | IO, how: int) -> bool:
    """``fcntl.flock``; False where the file system has no locks. Raises BlockingIOError."""
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True
