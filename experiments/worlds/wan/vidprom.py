"""VidProM, or any list of prompts: deduplicated, filtered, embedded."""

from collections.abc import Iterator, Sequence
from typing import Any

from datamodules.curation.refusal import Refusal, counted
from datamodules.curation.split import SPLITS, digest_of, shuffled, split_of
from datamodules.curation.vidprom import Prompt, PromptLimits, accept, read_prompts
from datamodules.shards.work import Sample, Work
from experiments.launch.hardware import launch_of, prepare
from experiments.launch.memory.check import before_encoding
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from experiments.worlds.wan.encoders import DTYPES, WanEncoders, check_dtypes
from experiments.worlds.wan.vbench_prompts import check_list, videos_of
from lightning_modules.ranges import FrameRate, Percent, PositiveInt


def check(settings: dict[str, Any]) -> None:
    """Refuse settings that do not fit, before anything is read."""
    check_dtypes(text_dtype=settings["text_dtype"])
    if settings["split"] not in SPLITS:
        raise ValueError(f"curate.split: {settings['split']!r} is none of {', '.join(SPLITS)}")
    PromptLimits(**bind(PromptLimits, settings["limits"], section="curate.limits"))


def plan(
    folder: RunFolder,
    seed: int,
    *,
    table: str,
    split: str,
    heldout_percent: Percent,
    count: PositiveInt,
    fps: FrameRate,
    limits: dict[str, Any],
    text_dtype: str,
    items_per_shard: PositiveInt,
    videos: PositiveInt | None = None,
    flickering_videos: PositiveInt | None = None,
) -> Work:
    """Choose the prompts; nothing is embedded yet.

    Args:
        folder: of the run; needs ``prompts`` (where the file is) and ``wan``.
        seed: of the subset; more prompts with one seed extend fewer.
        table: ``VidProM_unique.csv``, or a text file with one prompt a line.
        split: ``train`` or ``heldout``; they share no prompt, however it is written.
        heldout_percent: of the prompts.
        count: prompts wanted.
        fps: of the clips that will be made for them.
        limits: of `vidprom.PromptLimits`.
        text_dtype: ``float32`` or ``bfloat16``.
        items_per_shard: prompts per shard.
        videos: how many `sample` makes of a prompt; None: one, and nothing is stored about it.
        flickering_videos: the same, of a prompt by which VBench judges temporal flickering; None:
            as many as of any other.

    Raises:
        FileNotFoundError, ValueError: a folder, file, column or setting that is unusable.
    """
    wan, device = folder.need("wan"), prepare(folder.recipe)
    encoders = WanEncoders(wan, device, "float32", text_dtype)
    before_encoding(wan, launch_of(folder.recipe), device, text_encoder=DTYPES[text_dtype])
    path = folder.need("prompts") / table
    check_list(path)
    refused: list[Refusal] = []
    accepted = PromptLimits(**bind(PromptLimits, limits, section="curate.limits"))
    prompts = [
        prompt
        for prompt in accept(read_prompts(path), accepted, refused)
        if split_of(prompt.key, heldout_percent) == split
    ]
    if len(prompts) < count:
        raise ValueError(
            f"curate.count: {count} prompts wanted, {path} has {len(prompts)} of split {split}"
            f" within curate.limits (refused: {counted(refused)}); lower it, or widen the limits"
        )
    chosen = shuffled(prompts, lambda prompt: prompt.key, seed)[:count]
    about = {
        "source": "vidprom",
        "table": table,
        "split": split,
        "heldout_percent": heldout_percent,
        "seed": seed,
        "items": digest_of(f"{prompt.name}\0{prompt.text}" for prompt in chosen),
        "limits": limits,
        **encoders.about(fps),
    }

    many = None
    if videos is not None:
        flickering_videos = flickering_videos or videos
        many = videos_of(path, videos, flickering_videos)
        about["videos"] = [videos, flickering_videos]

    def samples(prompts: Sequence[Prompt]) -> Iterator[Sample]:
        texts = encoders.texts([prompt.text for prompt in prompts])
        for prompt, text in zip(prompts, texts, strict=True):
            info: dict[str, Any] = {"caption": prompt.text, "name": prompt.name}
            if many is not None:
                info["videos"] = many(prompt.name)
            yield prompt.key, {"text": text}, info

    return Work("prompts", about, chosen, samples, items_per_shard, encoders.negative, refused)
