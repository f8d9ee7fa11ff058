"""The last tar of a set that has more samples than are wanted, written again with the first."""

from __future__ import annotations

import os

from datamodules.shards.npy_tar import PADDED, decode_array, decode_info, with_padding
from datamodules.shards.shard_file import Note, tar_path
from datamodules.shards.shard_set import ShardSet


def shortened(shards: ShardSet, number: int, note: Note, count: int) -> Note:
    """The note of tar `number` after it was cut to its first `count` samples.

    It is as if the others had never been written, and keeps what was refused beside all of them. An
    interruption leaves the old tar, the new one, or one that is made again.

    Args:
        shards: the set in the making.
        number: of a finished tar.
        note: what that tar holds.
        count: samples to keep, at least one.
    """
    path = tar_path(shards.folder, number)
    shorter = shards.start(number, note["fields"])
    try:
        with open(path, "rb", buffering=0) as tar:
            for key, members in list(note["members"].items())[:count]:
                where = f"sample {key!r} in {path}"
                parts = {
                    name: os.pread(tar.fileno(), size, offset)
                    for name, (offset, size) in members.items()
                }
                info = decode_info(parts.pop("json"), where)
                arrays = {}
                for member, data in parts.items():
                    name, array = member.removesuffix(".npy"), decode_array(data, where)
                    length = note["fields"][name]["shape"][0]
                    arrays[name] = with_padding(array, length) if name in PADDED else array
                shorter.write(key, arrays, info)
        return shorter.finish(note["remarks"])
    except BaseException:
        shorter.abandon()
        raise
