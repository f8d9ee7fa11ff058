"""OpenVid-1M: downloaded videos -> latents and embedded captions.

Rows are filtered by the table's metadata; the remaining videos are decoded in random order and
filtered by their content until enough are accepted. Decoding runs in ``launch.workers`` processes,
in parallel with the encoders.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from datamodules.curation.decoding import ClipSpec
from datamodules.curation.openvid import Item, Limits, Row, decode_item, read_table
from datamodules.curation.refusal import Refusal, Refused, counted
from datamodules.curation.split import SPLITS, digest_of, number_of, shuffled, split_of
from datamodules.curation.video_files import VideoFile, find_videos
from datamodules.curation.workers import Workers
from datamodules.shards.work import Sample, Work
from experiments.launch.hardware import launch_of, prepare
from experiments.launch.memory.check import before_encoding
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from experiments.worlds.wan.encoders import DTYPES, WanEncoders, check_dtypes
from settings.ranges import ClipShape, FrameRate, Percent, PositiveInt


def check(settings: dict[str, Any]) -> None:
    """Refuse settings that do not fit, before anything is read."""
    check_dtypes(vae_dtype=settings["vae_dtype"], text_dtype=settings["text_dtype"])
    if settings["split"] not in SPLITS:
        raise ValueError(f"curate.split: {settings['split']!r} is none of {', '.join(SPLITS)}")
    Limits(**bind(Limits, settings["limits"], section="curate.limits"))
    bind(ClipSpec, settings["video"], _GIVEN, "curate.video")


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
        folder: of the run; needs ``videos`` (the table, and zip parts or files) and ``wan``.
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
    spec = _spec(encoders.pixels_of(clip_shape), fps, video)
    source = folder.need("videos")
    refused: list[Refusal] = []
    accepted = Limits(**bind(Limits, limits, section="curate.limits"))
    found = find_videos(source)
    rows = [
        row
        for row in _accepted(read_table(source / table), accepted, found, refused)
        if split_of(row.source, heldout_percent) == split
    ]
    if len(rows) < count:
        raise ValueError(
            f"curate.count: {count} videos wanted, {source} has {len(rows)} of split {split} within"
            f" curate.limits (refused: {counted(refused)}); lower it, widen the limits, or download"
            " more parts"
        )
    candidates = shuffled(rows, lambda row: row.key, seed)
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
    items = [Item(row, found[row.video], spec) for row in candidates]
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
            "aesthetic": row.aesthetic,
            "motion": row.motion,
            "camera_motion": row.camera_motion,
        }
        arrays = {"latents": self._encoders.latents(clip), "text": text}
        return f"{number_of('video', row.key):016x}", arrays, info


def _accepted(
    rows: Iterator[Row], limits: Limits, found: dict[str, VideoFile], refused: list[Refusal]
) -> Iterator[Row]:
    """Rows within limits whose video exists, without duplicates; others are added to `refused`."""
    seen: set[str] = set()
    for row in rows:
        try:
            if row.video in seen:
                raise Refused("table: repeated")
            seen.add(row.video)
            limits.check(row)
            if row.video not in found:
                raise Refused("absent", "not in the folder or its zips")
        except Refused as why:
            refused.append(Refusal(row.video, why.reason, why.detail))
        else:
            yield row


_GIVEN = {"frames", "fps", "height", "width"}


def _spec(pixels: tuple[int, int, int], fps: int, video: dict[str, Any]) -> ClipSpec:
    frames, height, width = pixels
    rest = bind(ClipSpec, video, _GIVEN, "curate.video")
    return ClipSpec(frames=frames, fps=fps, height=height, width=width, **rest)
