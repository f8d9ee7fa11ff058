"""Byte formats of a shard set: npy and json members, offsets in a tar, hashes.

Nothing here unpickles: an `.npy` that holds Python objects is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

Index = dict[str, dict[str, dict[str, list[int]]]]  # file -> key -> member -> [offset, bytes]
_HEADER = 10  # bytes of an npy file before its header: magic, version, the header's length
PADDED = ("text",)  # fields that are stored without the zero rows at their end


def local_folder(folder: Path | str) -> Path:
    """`folder` as a path; ValueError for anything remote, which could not be read at random."""
    # A Path has already collapsed "s3://x" to "s3:/x".
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", str(folder)):
        raise ValueError(
            f"shards are read from local folders, {folder} is remote: copy it first "
            "(e.g. `hf download`, `aws s3 sync`, `rclone copy`) and give the local path"
        )
    return Path(folder)


def encode_array(array: np.ndarray) -> bytes:
    """`array` as the bytes of an `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def decode_array(data: bytes, where: str) -> np.ndarray:
    """The array of an `.npy` file; ValueError naming `where` when the bytes are not one."""
    try:
        start = _HEADER + int.from_bytes(data[_HEADER - 2 : _HEADER], "little")
        shape, dtype = _array_header(data[:start])
        return np.frombuffer(data, dtype, prod(shape), start).reshape(shape).copy()
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise ValueError(f"{where} is corrupt ({error}): fetch or write the shard again") from error


@lru_cache(maxsize=64)
def _array_header(header: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype; equal for all samples of a set, and parsing them costs more than the rest.

    Raises:
        ValueError: another version of the format than `encode_array` writes, or Python objects.
    """
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not version 1.0 of the npy format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran or dtype.hasobject:
        raise ValueError("it is stored by columns" if fortran else "it holds Python objects")
    return shape, dtype


def without_padding(array: np.ndarray) -> np.ndarray:
    """`array` [L, ...] without the zero rows at its end, of which one is kept if there is no other.

    A prompt has fifty tokens and its embedding 512 rows: at Wan's size the difference is megabytes.
    """
    used = np.flatnonzero(array.reshape(len(array), -1).any(axis=1))
    return array[: used[-1] + 1 if len(used) else 1]


def with_padding(array: np.ndarray, length: int) -> np.ndarray:
    """The inverse of `without_padding`: zero rows up to `length`."""
    padded = np.zeros((length, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded


def decode_info(data: bytes, where: str) -> dict[str, Any]:
    """The sample's json; ValueError naming `where` when it is corrupt or has no caption."""
    try:
        info = json.loads(data)
        if not isinstance(info, dict) or not isinstance(info.get("caption"), str):
            raise ValueError("no caption")
    except ValueError as error:  # includes json's and unicode's errors
        raise ValueError(
            f"{where}: its json is corrupt ({error}): fetch or write the shard again"
        ) from error
    return info


def decode_fields(
    members: dict[str, list[int]],
    fields: dict[str, dict[str, Any]],
    read: Callable[[int, int], Any],
    where: str,
) -> dict[str, np.ndarray]:
    """The arrays of one stored sample, padded as they were given to the writer.

    Args:
        members: of the sample: name -> offset and bytes.
        fields: to decode: name -> shape and dtype in the manifest.
        read: function of offset and length that returns bytes.
        where: the sample, for messages.

    Raises:
        ValueError: an array is corrupt, or has another shape or dtype.
    """
    arrays = {}
    for name, want in fields.items():
        array = decode_array(bytes(read(*members[f"{name}.npy"])), f"{where}, field {name}")
        if name in PADDED and len(array) < want["shape"][0]:
            array = with_padding(array, want["shape"][0])
        if list(array.shape) != want["shape"] or str(array.dtype) != want["dtype"]:
            raise ValueError(
                f"{where}: {name} is {array.dtype} {list(array.shape)}, manifest.json says "
                f"{want['dtype']} {want['shape']}: write the shard again"
            )
        arrays[name] = array
    return arrays


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate_members(path: Path) -> dict[str, dict[str, list[int]]]:
    """Offsets of the members of the tar, {key: {member: [offset, bytes]}}, in stored order."""
    places: dict[str, dict[str, list[int]]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, name = member.name.partition(".")
            places.setdefault(key, {})[name] = [member.offset_data, member.size]
    return places
