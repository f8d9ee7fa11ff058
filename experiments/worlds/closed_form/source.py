"""Clips of a law whose every density is known, and the law itself as a network.

A frame is d numbers, stored as ``[d, 1, 1]`` latents without an autoencoder; the text is the
one-hot component of the first frame, the negative prompt zeros (unconditional). ``law``, next to
the shards, is a `ClosedForm` network in diffusers format: recipes name this run where they want the
exact teacher or score.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch

from datamodules.shards.work import Sample, Work
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from lightning_modules.networks.closed_form.gaussian_world import GaussianWorld
from lightning_modules.networks.closed_form.network import ClosedForm
from lightning_modules.networks.pipeline_folder import writing
from lightning_modules.ranges import PositiveInt

CHUNK = 1024  # samples per draw and per shard; sample i depends on (seed, i) alone
FPS = 1  # arbitrary: frames of a law have no duration, but a manifest needs a rate


def check(settings: dict[str, Any]) -> None:
    """Refuse settings that do not fit, before anything is made."""
    _law(settings["law"])


def plan(
    folder: RunFolder,
    seed: int,
    *,
    kind: Literal["clips", "prompts"],
    count: PositiveInt,
    law: dict[str, Any],
) -> Work:
    """What to make; the law is written at once.

    Args:
        folder: of the run; the network lies in its ``law``.
        seed: must differ between splits; nothing else makes them disjoint.
        kind: ``clips`` have latents (float32) and text, ``prompts`` text alone.
        count: samples.
        law: parameters of `GaussianWorld`.
    """
    world = _law(law)
    about = {"source": "closed_form", "seed": seed, "fps": FPS, "channels": world.size}
    one_hot = np.eye(world.components, dtype=np.float32)[:, None]  # [K, 1, K]

    def samples(numbers: Sequence[int]) -> Iterator[Sample]:
        frames, components, signs = world.draw(CHUNK, _generator(seed, numbers[0] // CHUNK))
        latents = frames.float().numpy()[..., None, None]
        for row, number in enumerate(numbers):
            component = components[row].item()
            arrays = {"text": one_hot[component]}
            if kind == "clips":
                arrays["latents"] = latents[row]
            attributes = {"component": component, "signs": signs[row].tolist()}
            info = {"caption": f"component {component}", "attributes": attributes}
            yield f"clip-{seed}-{number:06d}", arrays, info

    with writing(folder.path / "law"):
        ClosedForm.of(world, world.size).save_pretrained(folder.path / "law")
    about |= {"law": asdict(world)}
    return Work(kind, about, range(count), samples, CHUNK, lambda: np.zeros_like(one_hot[0]))


def _law(numbers: dict[str, Any]) -> GaussianWorld:
    return GaussianWorld(**bind(GaussianWorld, numbers, section="curate.law"))


def _generator(seed: int, chunk: int) -> torch.Generator:
    words = np.random.SeedSequence([seed, chunk]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
