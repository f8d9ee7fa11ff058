"""The one reader of text that others wrote: prompt lists, tables (CSV) and JSON files.

Encodings are UTF-8, with or without a byte order mark, and UTF-16 with one. A line ends with LF,
CR LF or CR, never with U+2028, U+0085 or a form feed, which `str.splitlines` takes for ends too:
they are part of a prompt. What cannot be read is refused with file, line and cure.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

LONGEST_FIELD = 2**20  # characters; an unclosed quote would swallow the rest of a table otherwise
csv.field_size_limit(LONGEST_FIELD)

_MARKS = {  # UTF-32 first: its little-endian mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: None,
    codecs.BOM_UTF32_BE: None,
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SAVE_AS = "save it as UTF-8, such as by: iconv -f ITS_ENCODING -t UTF-8 OLD > NEW"
_STRANGERS = {  # first characters of what was downloaded in place of a text
    "version https://git-lfs": "a Git LFS pointer, not the file itself: git lfs pull",
    "<!doctype html": "a web page, not the file it shows: download the raw file",
    "<html": "a web page, not the file it shows: download the raw file",
}
_SPACES = r"\s\u3000-\u303f\uff01-\uff0f\uff1a-\uff20"  # and East Asian punctuation
_ONE_A_WORD = r"\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SEVERAL_A_WORD = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_WORD = re.compile(
    f"[{_ONE_A_WORD}]|[{_SEVERAL_A_WORD}]{{1,5}}|[^{_SPACES}{_ONE_A_WORD}{_SEVERAL_A_WORD}]+"
)


class Record(NamedTuple):
    """A record of a table: the line that it begins in, its values, and what is wrong with it.

    ``problem`` is empty, or says why `values` are none: the record has more or fewer fields than
    the header.
    """

    line: int
    values: dict[str, str]
    problem: str = ""


def words_in(text: str) -> int:
    """Number of words: what white space separates, as far as the script has any.

    Chinese and Japanese characters count as a word each, and five characters of Thai, Lao, Khmer or
    Burmese as one: these are written without spaces.
    """
    return len(_WORD.findall(text))


def read_text(path: Path) -> str:
    """A whole file, without its byte order mark.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an encoding other than those above; names the line.
    """
    return "".join(_raw_lines(path))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end); empty lines are among them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an encoding other than those above; names the line.
    """
    for number, line in enumerate(_raw_lines(path), 1):
        yield number, line.rstrip("\r\n")


def read_records(path: Path, columns: Sequence[str], cure: str) -> Iterator[Record]:
    """The records of a comma-separated table.

    Args:
        path: of the table; its first line is the header.
        columns: the ones that it must have.
        cure: what to do where it lacks one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such column, another encoding, an unclosed quote, or a field of more than
            `LONGEST_FIELD` characters; names the line.
    """
    table = csv.reader(_raw_lines(path), strict=True)
    header = [name.strip() for name in _next(path, table, 1) or []]
    if missing := [name for name in columns if name not in header]:
        raise ValueError(
            f"{path}: no column {', '.join(map(repr, missing))}; it has"
            f" {', '.join(map(repr, header)) or 'none'}; {cure}"
        )
    while True:
        begins = table.line_num + 1
        fields = _next(path, table, begins)
        if fields is None:
            return
        if len(fields) == len(header):
            yield Record(begins, dict(zip(header, fields, strict=True)))
        elif fields:  # not an empty line
            found = f"line {begins} has {len(fields)} fields, the header {len(header)}"
            yield Record(begins, {}, found)


def _next(path: Path, table: Iterator[list[str]], begins: int) -> list[str] | None:
    try:
        return next(table, None)
    except csv.Error as error:
        raise ValueError(
            f"{path}: the record that begins in line {begins} has a quote that is not closed, or a"
            f" field of more than {LONGEST_FIELD} characters ({error}); close it or delete the"
            ' line; a quote inside a quoted field is written ""'
        ) from None


def _raw_lines(path: Path) -> Iterator[str]:
    """Lines with their ends."""
    with open(path, "rb") as file:
        start = file.read(4)
    encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8")
    if encoding is None:
        raise ValueError(f"{path}: line 1: UTF-32; {_SAVE_AS}")
    try:
        with open(path, newline="", encoding=encoding) as file:
            yield from _checked(path, file)
    except UnicodeDecodeError as error:
        line = _first_undecodable(path.read_bytes(), encoding)
        raise ValueError(
            f"{path}: line {line}: neither UTF-8 nor UTF-16 with a byte order mark"
            f" ({error.reason}); {_SAVE_AS}"
        ) from None


def _checked(path: Path, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if number == 1:
            _refuse_strangers(path, line)
        if "\0" in line:
            raise ValueError(
                f"{path}: line {number}: a NUL character: a binary file, or UTF-16 without a byte"
                f" order mark; {_SAVE_AS}"
            )
        yield line


def _refuse_strangers(path: Path, line: str) -> None:
    start = line.strip().lower()
    for first, what in _STRANGERS.items():
        if start.startswith(first):
            raise ValueError(f"{path}: line 1: {what}")


def _first_undecodable(data: bytes, encoding: str) -> int:
    """Number of the line that holds the first byte which `encoding` cannot read."""
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        whole = data[: error.start].decode(encoding, errors="ignore")
        return 1 + len(re.findall(r"\r\n|\r|\n", whole))
    return 1
