"""``sample``: generate clips for held-out prompts and store them, ready to be scored."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.shards import ShardReader, ShardWriter, open_shards
from experiments.bind import bind
from experiments.codec import autoencoder_of
from experiments.folder import RunFolder
from experiments.hardware import launch_of, prepare
from experiments.networks import load_network
from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.flow import time_grid
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import (
    FewSteps,
    Past,
    Solve,
    few_step_times,
    rollout,
    solve,
)
from lightning_modules.diffusion.visibility import partition

log = logging.getLogger(__name__)
GIVEN = {"student", "prompts", "folder", "seed", "device"}
SAVED = ("pixels", "latents")
SAMPLERS = ("few_steps", "autoregressive_ode", "bidirectional_ode")


def check(recipe: dict[str, Any]) -> None:
    """Refuse a recipe whose settings do not fit, before anything is loaded."""
    settings = bind(generate_clips, recipe["sample"], GIVEN, "sample")
    if settings["sampler"] not in SAMPLERS:
        raise ValueError(f"sample.sampler: {settings['sampler']!r} is none of {SAMPLERS}")
    if settings["save"] not in SAVED:
        raise ValueError(f"sample.save: {settings['save']!r} is none of {SAVED}")
    launch_of(recipe)


def run(recipe: dict[str, Any], folder: RunFolder) -> None:
    """Sample ``needs.student`` on the prompts of ``needs.prompts``."""
    device = prepare(recipe)
    generate_clips(
        student=load_network(folder.need("student")).to(device).eval().requires_grad_(False),
        prompts=open_shards(folder.need("prompts") / "shards"),
        folder=folder,
        seed=recipe["seed"],
        device=device,
        **bind(generate_clips, recipe["sample"], GIVEN, "sample"),
    )


@torch.no_grad()
def generate_clips(
    student: nn.Module,
    prompts: ShardReader,
    folder: RunFolder,
    seed: int,
    device: torch.device,
    *,
    sampler: str,
    first: int,
    count: int,
    batch: int,
    clip_shape: list[int],
    blocks: str | int | list[int],
    few_steps: int,
    first_few_steps: int,
    intervals: int,
    shift: float,
    guidance: float,
    save: str,
) -> None:
    """Write ``count`` clips as shards, each with its prompt's information.

    Args:
        sampler: ``few_steps`` for students, ``autoregressive_ode`` for an AR teacher,
            ``bidirectional_ode`` for a base model.
        first: number of the first prompt of the set.
        clip_shape: ``[F, C, H, W]``.
        few_steps, first_few_steps: of ``few_steps``; it has no guidance.
        intervals, guidance: of the two ODE samplers.
        save: ``pixels`` decodes (kind ``videos``); ``latents`` is for worlds whose latents are the
            data (kind ``clips``).

    Raises:
        ValueError: the set has too few prompts.
    """
    if first + count > len(prompts):
        raise ValueError(
            f"sample.count: prompts {first}..{first + count - 1} wanted, {prompts.folder} has"
            f" {len(prompts)}; lower it, or curate more"
        )
    sizes, grid = partition(blocks, clip_shape[0]), time_grid(intervals, shift).to(device)
    negative = torch.from_numpy(prompts.negative).to(device)
    decode = autoencoder_of(prompts.manifest, device).decode if save == "pixels" else None

    def generate(text: Tensor, random: Randomness) -> Tensor:
        noise = random.normal("noise", clip_shape)
        if sampler == "bidirectional_ode":
            v = forcing.bidirectional_ode(student, text, negative, guidance)
            return solve(v, noise, grid.float())[0]
        if sampler == "autoregressive_ode":
            return rollout(Past(student, text, negative, guidance), noise, sizes, Solve(grid))
        times = few_step_times(sizes, few_steps, first_few_steps, shift)
        renoise = _renoise(random, clip_shape)
        return rollout(Past(student, text), noise, sizes, FewSteps(times, renoise))

    about = {"sampler": sampler, "student": folder.need("student").name, "seed": seed}
    about |= {"fps": prompts.manifest["fps"], "source": prompts.fingerprint}
    kind = "videos" if decode else "clips"
    with ShardWriter(folder.path / "shards", kind, about=about) as writer:
        for start in range(first, first + count, batch):
            stop = min(start + batch, first + count)
            samples = [prompts.read(i, ["text"]) for i in range(start, stop)]
            keys = [sample["key"] for sample in samples]
            text = torch.stack([torch.from_numpy(s["text"]) for s in samples]).to(device)
            latents = generate(text, Randomness(seed, 0, keys, device)).cpu()
            for sample, clip in zip(samples, decode(latents) if decode else latents, strict=True):
                arrays = {"video": clip} if decode else {"latents": clip, "text": sample["text"]}
                stored = {name: np.asarray(array) for name, array in arrays.items()}
                writer.write(sample["key"], stored, sample["info"])
            folder.progress(stop - first, count, "clips")
    log.info("%d clips by %s", count, sampler)


def _renoise(random: Randomness, clip_shape: list[int]) -> Callable[[int], Tensor]:
    return lambda step: random.normal(f"renoise/{step}", clip_shape)
