"""OpenVid-1M: downloaded videos -> latents and embedded captions.

Rows are filtered by the table's metadata; the remaining videos are decoded in random order and
filtered by their content until enough are accepted. Decoding runs in ``launch.workers`` processes,
in parallel with the encoders.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.curation.openvid import Item, Limits, Row, decode_item, read_table
from datamodules.curation.refusal import Refusal, Refused, counted
from datamodules.curation.split import digest_of, number_of, shuffled, split_of
from datamodules.curation.video_files import VideoFile, find_table, find_videos, plain_name
from datamodules.curation.workers import Workers
from datamodules.shards.work import Sample, Work
from experiments.launch.hardware import launch_of, prepare
from experiments.launch.memory.check import before_encoding
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from experiments.worlds.wan.candidates import Candidates
from experiments.worlds.wan.clip_spec import check_clips, clip_spec
from experiments.worlds.wan.encoders import DTYPES, WanEncoders
from lightning_modules.ranges import ClipShape, FrameRate, Percent, PositiveInt

log = logging.getLogger(__name__)


def check(settings: dict[str, Any]) -> None:
    """Refuse settings that do not fit, before anything is read."""
    check_clips(settings)
    Limits(**bind(Limits, settings["limits"], section="curate.limits"))


def plan(
    folder: RunFolder,
    seed: int,
    *,
    table: str,
    split: str,
    heldout_percent: Percent,
    count: PositiveInt,
    clip_shape: ClipShape,
    fps: FrameRate,
    limits: dict[str, Any],
    video: dict[str, Any],
    vae_dtype: str,
    text_dtype: str,
    items_per_shard: PositiveInt,
) -> Work:
    """Choose the videos; nothing is decoded yet.

    Args:
        folder: of the run; needs ``videos`` (zip parts or files, and the table, which may lie
            deeper) and ``wan``.
        seed: of the order; more clips with one seed extend fewer.
        table: file name of the table, such as ``OpenVid-1M.csv``.
        split: ``train`` or ``heldout``; they share no source recording.
        heldout_percent: of the source recordings.
        count: clips wanted; a rejected video is replaced by the next candidate.
        clip_shape: ``[F, C, h, w]`` of the latents; published 21, 16, 60, 104.
        fps: of the clips; Wan's is 16.
        limits: of `openvid.Limits`, on the table's metadata.
        video: of `ClipSpec`, on the decoded video.
        vae_dtype, text_dtype: ``float32`` or ``bfloat16``.
        items_per_shard: videos per shard: at most so many are lost by an interruption.

    Raises:
        FileNotFoundError, ValueError: a folder, table, column, zip or setting that is unusable.
    """
    wan, device, launch = folder.need("wan"), prepare(folder.recipe), launch_of(folder.recipe)
    encoders = WanEncoders(wan, device, vae_dtype, text_dtype)
    before_encoding(wan, launch, device, vae=DTYPES[vae_dtype], text_encoder=DTYPES[text_dtype])
    spec = clip_spec(encoders.pixels_of(clip_shape), fps, video)
    source = folder.need("videos")
    refused: list[Refusal] = []
    accepted = Limits(**bind(Limits, limits, section="curate.limits"))
    found = find_videos(source)
    path = find_table(source, table)
    within = list(_accepted(read_table(path), accepted, refused))
    rows = [row for row in within if split_of(row.source, heldout_percent) == split]
    candidates = _candidates(folder, rows, found, seed)
    refused += _absent(within, candidates, found)
    if len(candidates) < count:
        raise ValueError(
            f"curate.count: {count} videos wanted, {source} has {len(candidates)} of split {split}"
            f" within curate.limits (refused: {counted(refused)}){_mismatch(rows, found)};"
            " lower it, widen the limits, or download more parts"
        )
    about = {
        "source": "openvid",
        "table": table,
        "split": split,
        "heldout_percent": heldout_percent,
        "seed": seed,
        "items": digest_of(f"{row.key}\0{row.caption}" for row in candidates),
        "limits": limits,
        "video": video,
        **encoders.about(fps),
    }
    maker = _Maker(encoders, launch.workers)
    items = [Item(row, _file(row, found, source), spec) for row in candidates]
    return Work(
        "clips", about, items, maker.samples, items_per_shard, encoders.negative, refused, count
    )


class _Maker:
    """Samples of items."""

    def __init__(self, encoders: WanEncoders, workers: int) -> None:
        self._encoders, self._workers = encoders, workers

    def samples(self, items: Sequence[Item]) -> Iterator[Sample | Refusal]:
        texts = self._encoders.texts([item.row.caption for item in items])
        with Workers(decode_item, self._workers) as workers:
            for text, (item, clip) in zip(texts, workers.map(items), strict=True):
                try:
                    yield self._sample(item.row, text, clip)
                except Refused as refused:
                    yield Refusal(item.row.video, refused.reason, refused.detail)

    def _sample(self, row: Row, text: np.ndarray, clip: np.ndarray | Refused) -> Sample:
        if isinstance(clip, Refused):
            raise clip
        info = {
            "caption": row.caption,
            "video": row.video,
            "aesthetic": _known(row.aesthetic),
            "motion": _known(row.motion),
            "camera_motion": row.camera_motion,
        }
        arrays = {"latents": self._encoders.latents(clip), "text": text}
        return f"{number_of('video', row.key):016x}", arrays, info


def _accepted(
    rows: Iterable[Row | Refusal], limits: Limits, refused: list[Refusal]
) -> Iterator[Row]:
    """Rows within limits, each video once; others are added to `refused`."""
    seen: set[str] = set()
    for row in rows:
        if isinstance(row, Refusal):
            refused.append(row)
            continue
        try:
            if row.video in seen:
                raise Refused("table: repeated")
            seen.add(row.video)
            limits.check(row)
        except Refused as why:
            refused.append(Refusal(row.video, why.reason, why.detail))
        else:
            yield row


def _candidates(
    folder: RunFolder, rows: list[Row], found: Mapping[str, VideoFile], seed: int
) -> list[Row]:
    """The rows to decode, in order: those whose video is there, or was when the set was begun.

    Videos may be mended, removed or added while a set is made, and finished shards hold whatever
    was there: a set that was begun keeps its candidates.
    """
    there = [row for row in rows if plain_name(row.video) in found]
    begun = Candidates(folder.path)
    names = begun.names([row.key for row in shuffled(there, lambda row: row.key, seed)])
    by_name = {row.key: row for row in rows}
    if gone := [name for name in names if name not in by_name]:
        raise ValueError(
            f"{begun.path}: the table no longer has {gone[0]!r} ({len(gone)} of {len(names)} that"
            f" the set was begun with): {begun.cure}"
        )
    chosen = set(names)
    if came := [row.video for row in there if row.key not in chosen]:
        log.warning(
            "%d videos came after the set was begun (such as %s) and are not used: %s",
            len(came),
            came[0],
            begun.cure,
        )
    return [by_name[name] for name in names]


def _absent(
    rows: list[Row], candidates: list[Row], found: Mapping[str, VideoFile]
) -> Iterator[Refusal]:
    """Refusals of the rows without a video; a candidate without one is refused in its shard."""
    chosen = {row.key for row in candidates}
    for row in rows:
        if row.key not in chosen and plain_name(row.video) not in found:
            yield Refusal(row.video, "absent", "not in the folder or its zips")


def _file(row: Row, found: Mapping[str, VideoFile], source: Path) -> VideoFile:
    """The video of a candidate; one that was taken away is refused when it is read."""
    return found.get(plain_name(row.video)) or VideoFile(str(source / row.video))


def _mismatch(rows: list[Row], found: Mapping[str, VideoFile]) -> str:
    """Two names to compare where the table and the folder share none."""
    if not rows or any(plain_name(row.video) in found for row in rows):
        return ""
    return f"; the table's videos are named as {rows[0].video!r}, the folder's as {min(found)!r}"


def _known(score: float) -> float | None:
    """None for a score that the table lacks, which JSON cannot hold."""
    return score if math.isfinite(score) else None
