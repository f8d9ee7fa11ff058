"""Atomic file writes and locks, for files shared by several processes."""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_BY_RUST = re.compile(r"\(os error (\d+)\)")
_NO_ROOM = 2**16  # bytes: with less, a write that failed for no stated reason failed for that
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
        with naming(path):
            yield part
            sync(part)
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give errors of writing ``path`` its name.

    The system names a file only where it is opened, and torch and safetensors tell of a full disk
    in exceptions of their own.

    Raises:
        OSError: with number and file name, for any error that is the disk's.
    """
    try:
        yield
    except Exception as error:
        number = _of_disk(error, path)
        if not number or (isinstance(error, OSError) and error.filename):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _of_disk(error: Exception, path: Path) -> int:
    """The error number of a failed write, 0 if it was no such error."""
    if isinstance(error, OSError):
        return error.errno or 0
    if found := _BY_RUST.search(str(error)):
        return int(found[1])
    full = isinstance(error, RuntimeError) and shutil.disk_usage(path.parent).free < _NO_ROOM
    return errno.ENOSPC if full else 0


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
