"""Video files: in a folder, or read directly from zip parts."""

from __future__ import annotations

import zipfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi")


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
            OSError, zipfile.BadZipFile: the file or the member is damaged.
        """
        if not self.member:
            return Path(self.path).read_bytes()
        return _opened(self.path).read(self.member)


def find_videos(folder: Path) -> dict[str, VideoFile]:
    """All videos below `folder`, by file name; a file outside a zip precedes one inside.

    Raises:
        FileNotFoundError: no such folder, or no video in it.
        ValueError: a truncated zip, or one published in pieces that were not joined.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of videos")
    found: dict[str, VideoFile] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            found.setdefault(path.name, VideoFile(str(path)))
    for path in sorted(folder.rglob("*.zip")):
        for member in _members(path):
            found.setdefault(Path(member).name, VideoFile(str(path), member))
    _refuse_pieces(folder)
    if not found:
        raise FileNotFoundError(
            f"{folder}: neither videos ({', '.join(SUFFIXES)}) nor zips of them; download"
            " OpenVid_part*.zip there, or give the folder that has them"
        )
    return found


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as opened:
            return [name for name in opened.namelist() if name.lower().endswith(SUFFIXES)]
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path}: cut off or no zip ({error}; {path.stat().st_size} bytes); download it again,"
            " or take it away to go on without its videos"
        ) from error


def _refuse_pieces(folder: Path) -> None:
    """OpenVid's parts above 50 GB are published as `OpenVid_part73_partaa`, ..."""
    for piece in sorted(folder.rglob("OpenVid_part*_part*")):
        whole = piece.with_name(piece.name.rsplit("_part", 1)[0] + ".zip")
        if not piece.suffix and not whole.is_file():
            raise ValueError(
                f"{piece}: a piece of {whole.name}; join the pieces first:"
                f" cat {piece.name.rsplit('_part', 1)[0]}_part* > {whole.name}"
            )


@lru_cache(maxsize=8)
def _opened(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)
