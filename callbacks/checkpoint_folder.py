"""Atomic replacement of a checkpoint that is a folder of many files.

A folder cannot be replaced atomically, but a symbolic link can: the checkpoint's name is a link to
one of two folders next to it; the next checkpoint is written to the other one, then the link is
switched.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from datamodules.atomic import sync


@contextmanager
def replaced(path: Path, first: bool, barrier: Callable[[], None]) -> Iterator[Path]:
    """The folder to write to; at the end of the ``with`` block ``path`` links to it.

    All ranks enter together and write their files into one folder on a shared disk. The ``first``
    rank clears it, syncs it to disk, switches the link and deletes the previous folder.

    Raises:
        OSError: if it could not be written, for example because the disk is full; the previous
            checkpoint is untouched.
    """
    used = os.readlink(path) if path.is_symlink() else ""
    folder = next(path.with_name(f".{path.name}.{n}") for n in "01" if used != f".{path.name}.{n}")
    barrier()  # all have read the link
    with _or_nothing(path, folder, first, bool(used)):
        if first:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        barrier()
        yield folder
    barrier()  # all have written
    if first:
        with _or_nothing(path, folder, first, bool(used)):
            for each in (*folder.rglob("*"), folder):
                sync(each)
        link = path.with_name(f".{path.name}.link")
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
        os.replace(link, path)
        sync(path.parent)  # until then the disk may still have the old link
        if used:
            shutil.rmtree(path.with_name(used), ignore_errors=True)


@contextmanager
def _or_nothing(path: Path, folder: Path, first: bool, used: bool) -> Iterator[None]:
    """On a failed write, remove the folder and say which checkpoint is left."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        if first:
            shutil.rmtree(folder, ignore_errors=True)
        kept = "the previous one is kept" if used else "there is no earlier one"
        raise OSError(
            f"{path}: checkpoint not written, {kept} ({error}); free disk space and start the same"
            " command again"
        ) from error
