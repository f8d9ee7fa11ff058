"""Moving digits: the tiny world's clips, encoded.

Clips are synthetic, so none is rejected. Every split is normalised by statistics of the same
training clips, so latents of all splits share one scale.

Kinds: ``clips`` have latents, text, state and the ground's visible tiles (`Ground.seen`); held-out
ones also pixels. ``prompts`` have text and attributes, drawn like those of clips. ``videos`` are
clips as pixels, state, ground and latents.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from datamodules.shards.work import Sample, Work
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from experiments.worlds.digits.moving_digits import (
    SPLITS,
    Clip,
    World,
    caption,
    generator,
    words,
)
from lightning_modules.networks.encoders import PatchTransform, TinyText, measure_patches
from lightning_modules.ranges import PositiveInt

KINDS = ("clips", "prompts", "videos")
CHUNK = 256  # clips in memory at once
ITEMS_PER_SHARD = 1024
STATISTICS_SEED = 0  # of the training clips that normalise every split


def check(settings: dict[str, Any]) -> None:
    """Refuse settings that do not fit, before anything is made."""
    for name, allowed in (("split", SPLITS), ("kind", KINDS)):
        if settings[name] not in allowed:
            raise ValueError(f"curate.{name}: {settings[name]!r} is none of {', '.join(allowed)}")
    World(**bind(World, settings["world"], section="curate.world"))
    raw_patches(**bind(raw_patches, settings["latents"], section="curate.latents"))
    bind(TinyText, settings["text"], section="curate.text")
    if lacks := set(words()) - set(settings["text"]["words"]):
        raise ValueError(f"curate.text.words: captions also have {sorted(lacks)}; add them")


def raw_patches(kept: PositiveInt) -> PatchTransform:
    """The tiny world's autoencoder before normalisation, for gray pixels."""
    return PatchTransform([0.0] * kept, 1.0, kept)


def plan(
    folder: RunFolder,
    seed: int,
    *,
    split: str,
    kind: str,
    count: PositiveInt,
    world: dict[str, Any],
    latents: dict[str, Any],
    text: dict[str, Any],
    negative_prompt: str,
    statistics: PositiveInt,
) -> Work:
    """Plan of the shard set; only the clips that normalise latents are drawn already.

    Args:
        folder: of the run, which needs nothing.
        seed: clip i of a split depends on (seed, split, i) alone.
        split: ``train`` or ``heldout``; they share no digit image.
        kind: ``clips``, ``prompts`` or ``videos``.
        count: samples.
        world: parameters of ``moving_digits.World``.
        latents: of `raw_patches`; mean and deviation are measured.
        text: of `TinyText`.
        negative_prompt: of classifier-free guidance; empty in the tiny world.
        statistics: train clips that mean and deviation of the latents are measured on.
    """
    law = World(**bind(World, world, section="curate.world"))
    encoder = TinyText(**bind(TinyText, text, section="curate.text"))
    kept = raw_patches(**bind(raw_patches, latents, section="curate.latents")).channels
    mean, std = measure_patches(_reference(law, statistics), kept)
    autoencoder = PatchTransform(mean, std, kept)
    about = {
        "source": "moving_digits",
        "split": split,
        "seed": seed,
        "world": world,
        "fps": law.fps,
        "channels": autoencoder.channels,
        "normalisation": {"mean": mean, "std": std},
        "autoencoder": {"class": "PatchTransform", "id": autoencoder.id, "kept": kept},
        "text_encoder": {"class": "TinyText", "id": encoder.id, **text},
        "negative_prompt": negative_prompt,
    }
    embed = cache(lambda sentence: _embed(encoder, sentence))

    def samples(numbers: Sequence[int]) -> Iterator[Sample]:
        for start in range(0, len(numbers), CHUNK):
            chunk = numbers[start : start + CHUNK]
            for number, arrays, info in _samples(law, autoencoder, seed, split, kind, chunk):
                yield f"{split}-{number:06d}", arrays | {"text": embed(info["caption"])}, info

    return Work(kind, about, range(count), samples, ITEMS_PER_SHARD, lambda: embed(negative_prompt))


Drawn = tuple[int, dict[str, np.ndarray], dict[str, Any]]


def _samples(
    law: World,
    autoencoder: PatchTransform,
    seed: int,
    split: str,
    kind: str,
    numbers: Sequence[int],
) -> Iterator[Drawn]:
    """Number, arrays (all but the text) and info of the samples `numbers`."""
    if kind == "prompts":
        for number in numbers:
            attributes = law.draw_attributes(generator(seed, split, number))
            yield number, {}, {"caption": caption(attributes), "attributes": attributes.as_dict()}
        return
    clips = [law.clip(seed, split, number) for number in numbers]
    latents = autoencoder.encode(_videos(clips)).numpy().astype(np.float16)
    with_pixels = kind == "videos" or split == "heldout"
    for number, clip, latent in zip(numbers, clips, latents, strict=True):
        arrays = {"latents": latent, "state": clip.states, "ground": clip.ground.seen(law.size)}
        if with_pixels:
            arrays["video"] = clip.video
        info = {"caption": caption(clip.attributes), "attributes": clip.attributes.as_dict()}
        yield number, arrays, info | {"image": clip.image}


def _reference(law: World, count: int) -> Iterator[torch.Tensor]:
    """Pixels of the train clips that statistics are measured on, whatever split is made."""
    for start in range(0, count, CHUNK):
        numbers = range(start, min(start + CHUNK, count))
        yield _videos([law.clip(STATISTICS_SEED, "train", number) for number in numbers])


def _embed(encoder: TinyText, sentence: str) -> np.ndarray:
    """Float32 [L, D]."""
    return encoder.encode([sentence])[0].numpy()


def _videos(clips: list[Clip]) -> torch.Tensor:
    """The clips' pixels, uint8 [B, T, H, W, 1]."""
    return torch.from_numpy(np.stack([clip.video for clip in clips]))
