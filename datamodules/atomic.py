"""Atomic file writes and locks, for files shared by several processes."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def growing(path: Path) -> Path:
    """Temporary path of a file with one writer; a fixed name, so leftovers are overwritten."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def replacing(path: Path, many: bool = False) -> Iterator[Path]:
    """Yields a temporary path, which is synced and renamed to ``path`` when the block ends.

    So ``path`` holds its old content or all of the new, and its old content if the block raises.

    Args:
        many: use a unique temporary name, since several processes may write at once.
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
    """Write a file atomically; see `replacing`."""
    with replacing(path, many) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; any number of processes may write."""
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
