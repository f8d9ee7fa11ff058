"""Videos with cameras -> latents, embedded captions, poses and intrinsics: a world model's data.

Every row of the table that will not do is refused with its reason (``refused.csv``). Decoding runs
in ``launch.workers`` processes, in parallel with the encoders.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.cameras import Stride
from datamodules.curation.posed_videos import Item, Posed, Row, decode_posed, read_table
from datamodules.curation.refusal import Refusal, Refused, counted
from datamodules.curation.split import digest_of, number_of, shuffled, split_of
from datamodules.curation.workers import Workers
from datamodules.shards.work import Sample, Work
from experiments.launch.hardware import launch_of, prepare
from experiments.launch.memory.check import before_encoding
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from experiments.worlds.wan.clip_spec import check_clips, clip_spec
from experiments.worlds.wan.encoders import DTYPES, WanEncoders
from lightning_modules.ranges import ClipShape, FrameRate, Percent, PositiveInt


def check(settings: dict[str, Any]) -> None:
    """Refuse settings that do not fit, before anything is read."""
    check_clips(settings)
    Stride(**bind(Stride, settings["stride"], section="curate.stride"))


def plan(
    folder: RunFolder,
    seed: int,
    *,
    table: str,
    split: str,
    kind: Literal["clips", "prompts"],
    heldout_percent: Percent,
    count: PositiveInt,
    clip_shape: ClipShape,
    fps: FrameRate,
    video: dict[str, Any],
    stride: dict[str, Any],
    vae_dtype: str,
    text_dtype: str,
    items_per_shard: PositiveInt,
    windows: PositiveInt = 1,
) -> Work:
    """Choose the videos; nothing is decoded yet.

    Args:
        folder: of the run; needs ``posed`` (the table, above its videos and cameras) and ``wan``.
        seed: of the order; more clips with one seed extend fewer.
        table: file name of the table, with columns video, cameras and caption.
        split: ``train`` or ``heldout``; they share no video.
        kind: ``clips``; or ``prompts``, the same without latents (videos are decoded all the same).
        heldout_percent: of the videos.
        count: samples wanted; a rejected clip is replaced by the next candidate.
        clip_shape: ``[F, C, h, w]`` of the latents.
        fps: of the clips; Wan's is 16.
        video: of `ClipSpec`, on the decoded video.
        stride: of `cameras.Stride`: the step that every clip is scaled to, and what a key will do.
        vae_dtype, text_dtype: ``float32`` or ``bfloat16``.
        items_per_shard: videos per shard: at most so many are lost by an interruption.
        windows: clips of a video at most, one after the other; a shorter one gives what it has.

    Raises:
        FileNotFoundError, ValueError: a folder, table, column or setting that is unusable.
    """
    wan, device, launch = folder.need("wan"), prepare(folder.recipe), launch_of(folder.recipe)
    encoders = WanEncoders(wan, device, vae_dtype, text_dtype)
    before_encoding(wan, launch, device, vae=DTYPES[vae_dtype], text_encoder=DTYPES[text_dtype])
    keys = Stride(**bind(Stride, stride, section="curate.stride"))
    spec = clip_spec(encoders.pixels_of(clip_shape), fps, video)
    path, refused = folder.need("posed") / table, []
    rows = [
        row
        for row in _rows(path, refused)
        if split_of(row.video, heldout_percent) == split
    ]  # fmt: skip
    if len(rows) * windows < count:
        raise ValueError(
            f"curate.count: {count} clips wanted, {path} has {len(rows)} videos of split {split}"
            f" (refused: {counted(refused)}), of {windows} windows each at most; lower it, add"
            " videos, or raise curate.windows"
        )
    every = [
        Item(row, path.parent, spec, clip_shape[0], keys, window)
        for row in rows
        for window in range(windows)
    ]
    items = shuffled(every, lambda item: item.name, seed)
    about = {
        "source": "posed_videos",
        "table": table,
        "split": split,
        "heldout_percent": heldout_percent,
        "seed": seed,
        "items": digest_of("\0".join([*item.row, str(item.window)]) for item in items),
        "video": video,
        "cameras": {
            "convention": "opencv-w2c",
            "unit": "of each clip",
            "step": keys.step,
            "turn": keys.turn,
            "scale": "per-clip",
        },
        **encoders.about(fps),
    }
    samples = _Maker(encoders, kind, launch.workers).samples
    return Work(kind, about, items, samples, items_per_shard, encoders.negative, refused, count)


class _Maker:
    """Samples of items."""

    def __init__(self, encoders: WanEncoders, kind: str, workers: int) -> None:
        self._encoders, self._kind, self._workers = encoders, kind, workers

    def samples(self, items: Sequence[Item]) -> Iterator[Sample | Refusal]:
        texts = self._encoders.texts([item.row.caption for item in items])
        with Workers(decode_posed, self._workers) as workers:
            for text, (item, found) in zip(texts, workers.map(items), strict=True):
                try:
                    yield self._sample(item, text, found)
                except Refused as refused:
                    yield Refusal(item.name, refused.reason, refused.detail)

    def _sample(self, item: Item, text: np.ndarray, found: Posed | Refused) -> Sample:
        if isinstance(found, Refused):
            raise found
        arrays = {"text": text, "poses": found.poses, "intrinsics": found.intrinsics}
        if self._kind == "clips":
            arrays["latents"] = self._encoders.latents(found.clip)
        info = {"caption": item.row.caption, "video": item.row.video, "window": item.window}
        key = f"{number_of('video', item.name):016x}"
        return key, arrays, info | {"scale": found.scale}


def _rows(path: Path, refused: list[Refusal]) -> Iterator[Row]:
    """Those that will do, each video once; others are added to `refused`."""
    seen: set[str] = set()
    for row in read_table(path):
        if isinstance(row, Refusal):
            refused.append(row)
        elif row.video in seen:
            refused.append(Refusal(row.video, "table: repeated"))
        else:
            seen.add(row.video)
            yield row
