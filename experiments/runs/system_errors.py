"""Errors of the operating system in words, with what to do about each."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def explain_system_error(error: OSError, file: str | bytes | int = "") -> str:
    """``FILE: what is wrong; the cure``.

    Args:
        error: with an ``errno``.
        file: the file it was about, if that is known.
    """
    name = os.fsdecode(file) if isinstance(file, str | bytes) else f"file descriptor {file}"
    explained = _WORDS.get(error.errno)
    said = error.strerror or os.strerror(error.errno)
    what = explained(Path(name)) if explained else said
    return f"{name}: {what}" if name else f"{said}: {what}" if what != said else said


def _full(path: Path) -> str:
    folder = _existing(path.parent)
    disk = shutil.disk_usage(folder)
    return (
        f"the disk is full ({disk.free / 2**20:,.0f} MiB free of {disk.total / 2**20:,.0f} at"
        f" {folder}); make room and give the same command again"
    )


def _forbidden(path: Path) -> str:
    near = _existing(path)
    return (
        f"no permission (owner and mode of {near}: {_owner(near)}, {near.stat().st_mode & 0o777:o};"
        f" you are user {os.getuid()}); ask its owner, or name a place of your own (runs lie where"
        " RUNS_DIR says)"
    )


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:  # a user without an entry in passwd
        return f"user {path.stat().st_uid}"


def _in_the_way(path: Path) -> str:
    file = next((each for each in (path, *path.parents) if each.is_file()), path)
    what = "a file" if file == path else f"{file} is a file"
    return f"{what} where a folder belongs; give another place, or move it away"


def _name_too_long(path: Path) -> str:
    longest = max(len(os.fsencode(part)) for part in path.parts)
    return f"a name of {longest} bytes, file systems take 255 (4,096 in all); use a shorter one"


def _open_files(path: Path) -> str:
    import resource

    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"too many open files ({allowed} are allowed); raise it: ulimit -n {most}"


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that exists and can be seen."""
    return next((each for each in (path, *path.absolute().parents) if os.path.exists(each)), Path())


def _always(words: str) -> Callable[[Path], str]:
    return lambda path: words


_DISK = _always("the disk or its server failed; see dmesg, mount it again, and repeat the command")
_NET = _always("the connection failed; see whether the network and the server are up, and repeat")
_WORDS: dict[int | None, Callable[[Path], str]] = {
    errno.ENOSPC: _full,
    errno.EDQUOT: _always("your quota on this disk is used up; make room, and repeat the command"),
    errno.EFBIG: _always("larger than a file may be here (ulimit -f; FAT: 4 GB); raise the limit"),
    errno.EACCES: _forbidden,
    errno.EPERM: _forbidden,
    errno.EROFS: _always(
        "a read-only file system; name another place (runs lie where RUNS_DIR says)"
    ),
    errno.ENOTDIR: _in_the_way,
    errno.EEXIST: _in_the_way,
    errno.EISDIR: _always("a folder where a file belongs; give a file, or move the folder away"),
    errno.ENOENT: _always("there is no such file or folder; check the path"),
    errno.ENAMETOOLONG: _name_too_long,
    errno.EMFILE: _open_files,
    errno.ENFILE: _open_files,
    errno.ELOOP: _always("symbolic links go in a circle; remove one of them"),
    errno.ENOMEM: _always("not enough memory; end other processes, or take a smaller batch"),
    errno.EIO: _DISK,
    errno.ESTALE: _DISK,
    errno.ETIMEDOUT: _NET,
    errno.ECONNREFUSED: _NET,
    errno.ECONNRESET: _NET,
    errno.EADDRINUSE: _always(
        "the port is taken; give a free one (MASTER_PORT of a fit, --port of the page)"
    ),
}
"""What each error number means for a path, and the cure."""
