"""Video files: in a folder and the folders linked into it, or read directly from zip parts."""

from __future__ import annotations

import errno
import logging
import os
import re
import shlex
import unicodedata
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from datamodules.curation.refusal import Refused

log = logging.getLogger(__name__)
SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi")
_OF_ONE_FILE = (  # other errors, such as EIO, are the disk's: they stop a curation
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
)
# OpenVid_part73_partaa, OpenVidHD_part_15_part_aa, OpenVid_part0.zip.001
_PIECE = re.compile(r"(?P<whole>.+?)(?P<between>_part_?|\.zip[._]?)([a-z]{2}|\d{2,3})")


class VideoFile(NamedTuple):
    """A video: a file, or a member of a zip.

    Args:
        path: of the file or the zip.
        member: name inside the zip; empty for a file.
    """

    path: str
    member: str = ""

    def read(self) -> bytes:
        """The encoded video.

        Raises:
            Refused: a file that cannot be read, though its folder can: a dangling link, a folder
                with a video's name, no permission.
            OSError, zipfile.BadZipFile: the disk is broken or gone, the zip or its member damaged.
        """
        if self.member:
            return _opened(self.path).read(self.member)
        try:
            return Path(self.path).read_bytes()
        except OSError as error:
            if error.errno not in _OF_ONE_FILE:
                raise
            os.listdir(Path(self.path).parent)  # fails if the whole disk is gone
            shown = os.fsencode(self.path).decode(
                errors="replace"
            )  # a folder's name may not be UTF-8
            raise Refused("unreadable", f"{shown}: {error.strerror}") from error


def plain_name(name: str) -> str:
    """A file name by which a table's and a disk's are the same one.

    Unicode is composed (macOS decomposes it), and the suffix in small letters.
    """
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
    return stem + suffix.lower()


def find_videos(folder: Path) -> dict[str, VideoFile]:
    """All videos below `folder`, by `plain_name`; a file outside a zip precedes one inside.

    Of files with equal names the first is taken, and that is logged.

    Links are followed. What only has the name of a video is found as well, and refused when it is
    read, so that mending it changes nothing else.

    Raises:
        FileNotFoundError: no such folder, or no video in it.
        ValueError: a truncated zip, or one published in pieces that were not joined.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of videos")
    files = sorted(files_below(folder, SUFFIXES))
    found: dict[str, VideoFile] = {}
    for path in files:
        if path.suffix.lower() in SUFFIXES:
            first = found.setdefault(plain_name(path.name), VideoFile(str(path)))
            if first.path != str(path):
                log.warning("%s is taken, not %s of the same name", first.path, path)
    for path in files:
        for member in _members(path) if path.suffix.lower() == ".zip" else ():
            found.setdefault(plain_name(Path(member).name), VideoFile(str(path), member))
    _refuse_pieces(files)
    if not found:
        raise FileNotFoundError(
            f"{folder}: neither videos ({', '.join(SUFFIXES)}) nor zips of them; download"
            " OpenVid_part*.zip there, or give the folder that has them"
        )
    return found


def find_table(folder: Path, name: str) -> Path:
    """The file `name` in `folder` or below it, as OpenVid's download has it in data/train/.

    Raises:
        FileNotFoundError: there is none; names the existing tables.
        ValueError: there are several below.
    """
    if (folder / name).is_file():
        return folder / name
    tables = sorted(path for path in files_below(folder) if path.suffix.lower() == ".csv")
    found = [path for path in tables if path.name == name]
    if len(found) > 1:
        raise ValueError(f"{found[0]} and {found[1]}: which one? move one to {folder / name}")
    if not found:
        there = ", ".join(str(path.relative_to(folder)) for path in tables) or "no .csv"
        raise FileNotFoundError(f"{folder / name}: no such table; {folder} has {there}")
    return found[0]


def files_below(folder: Path, also: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files below `folder`, through links to folders too, each folder once.

    Args:
        also: suffixes with which a folder counts as a file; it is not entered.
    """
    entered = set()
    for place, folders, files in os.walk(folder, onerror=_say_unlisted, followlinks=True):
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in entered:  # a link to a folder above, or a second link
            folders.clear()
            continue
        entered.add((stat.st_dev, stat.st_ino))
        named = [name for name in folders if name.lower().endswith(also)]
        folders[:] = sorted(set(folders) - set(named))
        yield from (Path(place, name) for name in (*files, *named))


def _say_unlisted(error: OSError) -> None:
    log.warning("%s: its files are left out: %s", error.filename, error.strerror)


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as opened:
            return [name for name in opened.namelist() if name.lower().endswith(SUFFIXES)]
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path}: cut off or no zip ({error}; {path.stat().st_size} bytes); download it again,"
            " or take it away to go on without its videos"
        ) from error
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); mend it, or take it away to go on without"
            " its videos"
        ) from error


def _refuse_pieces(files: list[Path]) -> None:
    """OpenVid's parts above 50 GB are published in pieces."""
    for path in files:
        piece = _PIECE.fullmatch(path.name)
        if piece and not path.with_name(f"{piece['whole']}.zip").is_file():
            whole, quoted = f"{piece['whole']}.zip", shlex.quote(piece["whole"] + piece["between"])
            raise ValueError(
                f"{path}: a piece of {whole}; join the pieces first: cd"
                f" {shlex.quote(str(path.parent))}; cat {quoted}* > {shlex.quote(whole)}"
            )


@lru_cache(maxsize=8)
def _opened(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)
