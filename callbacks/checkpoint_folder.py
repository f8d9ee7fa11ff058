"""A checkpoint of many files that is, under its name, whole or not there at all.

A folder cannot be replaced atomically, a link to it can: the name is a link to one of two folders
beside it, the next checkpoint grows in the other one, and the link is turned over when it is whole.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: Path, first: bool, barrier: Callable[[], None]) -> Iterator[Path]:
    """The folder to write to; at the end of the block ``path`` leads to it.

    All ranks enter together and write into one folder on a shared disk, each its own files, synced.
    The ``first`` one clears it, turns the link over and deletes what it led to before.

    Raises:
        OSError: if it could not be written, for example because the disk is full; what ``path`` led
            to before is untouched.
    """
    used = os.readlink(path) if path.is_symlink() else ""
    folder = next(path.with_name(f".{path.name}.{n}") for n in "01" if used != f".{path.name}.{n}")
    barrier()  # all have read the link
    try:
        if first:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        barrier()
        yield folder
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        if first:
            shutil.rmtree(folder, ignore_errors=True)
        kept = "the previous one is kept" if used else "there is no earlier one"
        raise OSError(
            f"{path}: checkpoint not written, {kept} ({error}); free disk space and start the same"
            " command again"
        ) from error
    barrier()  # all have written
    if first:
        link = path.with_name(f".{path.name}.link")
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
        os.replace(link, path)
        if used:
            shutil.rmtree(path.with_name(used), ignore_errors=True)
