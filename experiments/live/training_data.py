"""What the data of a run says of its student: encoders, captions, the camera, first frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datamodules.shards.reader import ShardReader, open_shards
from experiments.generation.codec import autoencoder_of, follow_autoencoder, text_encoder_of
from experiments.generation.student import Picture
from experiments.generation.walk import Camera, camera_of
from experiments.runs.folder import RunFolder
from lightning_modules.networks.encoders import Autoencoder

CAPTIONS = 200  # samples whose captions are suggested as prompts
PICTURES = 6  # first frames of clips that a walk may begin with


@dataclass(frozen=True)
class Encoders:
    """The encoders of a student's training data, and what else it says."""

    text: Any
    autoencoder: Any
    fps: float
    negative: str
    captions: tuple[str, ...] = ()
    camera: Camera | None = None
    pictures: tuple[Picture, ...] = ()


def encoders_of(run: RunFolder, device: torch.device, compile: bool) -> Encoders:
    """Those of a run.

    Args:
        run: of a student.
        device: where the autoencoder runs.
        compile: whether it may be compiled there.

    Raises:
        FileNotFoundError: its data is gone.
        ValueError: clips that are no pictures, or an autoencoder that is elsewhere.
    """
    shards = _shards(run)
    manifest = shards.manifest
    autoencoder = autoencoder_of(manifest, device, compile=compile)
    camera = camera_of(shards)
    return Encoders(
        text_encoder_of(manifest),
        autoencoder,
        manifest["fps"],
        manifest["negative_prompt"],
        _captions(shards),
        camera,
        _pictures(run, autoencoder, device) if camera else (),
    )


def _shards(run: RunFolder) -> ShardReader:
    """The data of a run, whose manifest names the encoders."""
    for shards in _sets(run, ("data", "panel")):
        if lacks := {"autoencoder", "text_encoder", "fps"} - set(shards.manifest):
            raise ValueError(
                f"{shards.folder / 'manifest.json'}: no {', '.join(sorted(lacks))}: the clips of"
                " this world are no pictures"
            )
        follow_autoencoder(shards, run)
        return shards
    raise FileNotFoundError(
        f"{run.path}: the data it was trained on ({run.recipe['needs'].get('data')}), which names"
        f" its encoders, is gone; put it back, or make it again: {run.command} --with-needs"
    )


def _sets(run: RunFolder, roles: Sequence[str]) -> Iterator[ShardReader]:
    """The shard sets among what a run needs that are there."""
    for role in roles:
        need = run.needs.get(role)
        folder = need.path if need else Path(run.recipe["needs"].get(role) or "")
        if (folder / "shards" / "manifest.json").is_file():
            yield open_shards(folder / "shards")


def _pictures(
    run: RunFolder, autoencoder: Autoencoder, device: torch.device
) -> tuple[Picture, ...]:
    """First frames of clips that it was watched by, or trained on."""
    clips = next((each for each in _sets(run, ("panel", "data")) if "latents" in each.fields), None)
    if clips is None:
        return ()
    found = []
    for number in range(min(PICTURES, len(clips))):
        sample = clips.read(number, ["latents"])
        frame = torch.as_tensor(sample["latents"][:1], device=device).float()[None]
        start = sample["info"].get("start")
        picture = autoencoder.decode(frame)[0, 0].cpu().numpy()
        found.append(Picture(sample["caption"], picture, tuple(start) if start else None))
    return tuple(found)


def _captions(shards: ShardReader) -> tuple[str, ...]:
    samples = (shards.read(number, []) for number in range(min(CAPTIONS, len(shards))))
    return tuple(dict.fromkeys(sample["caption"] for sample in samples))
