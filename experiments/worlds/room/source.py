"""Walks through the room as clips: rendered, encoded, with the camera of every frame.

Kinds: ``clips`` have latents, text, poses and intrinsics; held-out ones also pixels. ``prompts``
have text and a walk, drawn like those of clips. Latents of all splits are normalised by the same
training clips. What the text does not say is in each sample's info, for the scores: the paint, the
walls that bear their other painting, where the walk starts, its keys and its lamp.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import torch

from datamodules.cameras import Keys, parse_keys, to_stored
from datamodules.shards.work import Sample, Work
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from experiments.worlds.room.paint import PAINTS, caption
from experiments.worlds.room.walks import KEYS, REACH, Room, Walk, place_of
from lightning_modules.networks.encoders import PatchTransform, TinyText, measure_patches
from lightning_modules.ranges import PositiveInt

CHUNK = 128  # walks in memory at once
ITEMS_PER_SHARD = 1024
STATISTICS_SEED = 0  # of the training clips that normalise every split
COLOURS = {"pixel_channels": 3, "opponent": True}


def check(settings: dict[str, Any]) -> None:
    """Refuse settings that do not fit, before anything is made."""
    Room(**bind(Room, settings["room"], section="curate.room"))
    _channels(settings["kept"])
    _chosen(settings.get("keys", ""))
    bind(TinyText, settings["text"], section="curate.text")
    words = {word for paint in PAINTS for word in caption(paint).split()}
    if lacks := words - set(settings["text"]["words"]):
        raise ValueError(f"curate.text.words: captions also have {sorted(lacks)}; add them")


def plan(
    folder: RunFolder,
    seed: int,
    *,
    split: Literal["train", "heldout"],
    kind: Literal["clips", "prompts"],
    count: PositiveInt,
    room: dict[str, Any],
    kept: list[PositiveInt],
    text: dict[str, Any],
    negative_prompt: str,
    statistics: PositiveInt,
    keys: str = "",
) -> Work:
    """Plan of the shard set; only the walks that normalise latents are rendered already.

    Args:
        folder: of the run, which needs nothing.
        seed: walk i of a split depends on (seed, split, i) alone.
        split: ``train`` or ``heldout``.
        kind: ``clips`` or ``prompts``.
        count: samples.
        room: parameters of ``walks.Room``.
        kept: coefficients of `PatchTransform`, of brightness and two differences of colour.
        text: of `TinyText`.
        negative_prompt: of classifier-free guidance.
        statistics: training walks that mean and deviation of the latents are measured on.
        keys: of all walks, such as ``l*24``, a full turn; "": by chance.
    """
    law = Room(**bind(Room, room, section="curate.room"))
    chosen = _chosen(keys)
    encoder = TinyText(**bind(TinyText, text, section="curate.text"))
    mean, std = measure_patches(_reference(law, statistics), kept, **COLOURS)
    autoencoder = PatchTransform(mean, std, kept, **COLOURS)
    about = {
        "source": "room",
        "split": split,
        "seed": seed,
        "room": room,
        "fps": law.fps,
        "channels": autoencoder.channels,
        "normalisation": {"mean": mean, "std": std},
        "autoencoder": {
            "class": "PatchTransform", "id": autoencoder.id, "kept": list(kept), **COLOURS
        },
        "cameras": {
            "convention": "opencv-w2c",
            "unit": "half the height of a wall",
            "step": law.step,
            "turn": law.turn,
            "scale": "source",
            "yaw": "camera",
            "walls": [[-REACH, REACH]] * 2,
            "keys": sorted(frozenset().union(*KEYS)),
        },
        "text_encoder": {"class": "TinyText", "id": encoder.id, **text},
        "negative_prompt": negative_prompt,
    }  # fmt: skip
    if chosen is not None:
        about["keys"] = keys
    embed = cache(lambda sentence: encoder.encode([sentence])[0].numpy())

    def samples(numbers: Sequence[int]) -> Iterator[Sample]:
        for start in range(0, len(numbers), CHUNK):
            chunk = numbers[start : start + CHUNK]
            walks = [law.walk(split, seed, number, chosen) for number in chunk]
            pictures = _pictures(walks, autoencoder, split) if kind == "clips" else [{}] * CHUNK
            for number, walk, arrays in zip(chunk, walks, pictures, strict=False):
                info = {"caption": caption(walk.paint), "attributes": {"paint": walk.paint}}
                arrays = {**arrays, "poses": to_stored(walk.poses), "intrinsics": walk.intrinsics}
                arrays["text"] = embed(info["caption"])
                yield f"{split}-{number:06d}", arrays, info | _facts(walk)

    return Work(kind, about, range(count), samples, ITEMS_PER_SHARD, lambda: embed(negative_prompt))


def _chosen(keys: str) -> list[Keys] | None:
    """The keys of every frame; None: by chance. ValueError for what the room does not know."""
    try:
        chosen = parse_keys(keys)
    except ValueError as error:
        raise ValueError(f"curate.keys: {error}") from None
    if unknown := sorted("".join(sorted(each)) for each in set(chosen) - set(KEYS)):
        known = ", ".join("".join(key) or "none" for key in KEYS)
        raise ValueError(f"curate.keys: {unknown[0]!r}: this room has, one at a time, {known}")
    return chosen or None


def _channels(kept: Sequence[int]) -> int:
    """Latent channels; ValueError if the coefficients are no squares, or not three."""
    try:
        return PatchTransform([0.0] * sum(kept), 1.0, kept, **COLOURS).channels
    except ValueError as error:
        raise ValueError(f"curate.{error}") from error


def _facts(walk: Walk) -> dict[str, Any]:
    """What a caption does not say."""
    return {
        "start": list(place_of(walk.poses[0])),
        "keys": ["".join(sorted(keys)) for keys in walk.keys],
        "dark": walk.dark.tolist(),
        "others": list(walk.others),
    }


def _pictures(
    walks: Sequence[Walk], autoencoder: PatchTransform, split: str
) -> Iterator[dict[str, np.ndarray]]:
    """Latents, and pixels of held-out walks."""
    videos = np.stack([walk.video for walk in walks])
    latents = autoencoder.encode(torch.from_numpy(videos)).numpy().astype(np.float16)
    for video, latent in zip(videos, latents, strict=True):
        yield {"latents": latent} | ({"video": video} if split == "heldout" else {})


def _reference(law: Room, count: int) -> Iterator[torch.Tensor]:
    """Pixels of the training walks that statistics are measured on, whatever split is made."""
    for start in range(0, count, CHUNK):
        numbers = range(start, min(start + CHUNK, count))
        walks = [law.walk("train", STATISTICS_SEED, number) for number in numbers]
        yield torch.from_numpy(np.stack([walk.video for walk in walks]))
