"""``sample``: generate and store clips for held-out prompts.

Image to video is the same rollout, without further training: with ``given: 1`` the first latent
frame is a conditioning frame, the encoded image of ``needs.pictures`` or the first frame of the
clip in ``needs.prompts``. Clips longer than the training clips need a ``window``
(``lightning_modules/diffusion/fast_past.py``).
"""

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.shards.reader import ShardReader, open_shards
from datamodules.shards.work import Sample, Work
from experiments.checkpoints import sampling_config
from experiments.checkpoints.networks import network_folder
from experiments.generation.background import Background, ahead
from experiments.generation.codec import follow_autoencoder
from experiments.generation.conditioning import Conditioning, encoded_images, first_frames_of_clips
from experiments.generation.faults import require_sound
from experiments.generation.generation import (
    autocast,
    camera_fields,
    cameras_of,
    encoders_of,
    frozen,
    require_given,
    require_usable,
    samples_per_shard,
    stack,
)
from experiments.generation.outputs import Saver
from experiments.generation.sampling import Sampling, sampler_of
from experiments.launch.causality import require_causality
from experiments.launch.hardware import accelerated, launch_of, prepare
from experiments.launch.memory.check import before_generation
from experiments.launch.second_time import (
    has_two_times,
    require_needs_of_one_time,
    require_velocity,
)
from experiments.launch.shard_workers import make_together
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from lightning_modules.diffusion.forcing import VelocityNetwork
from lightning_modules.diffusion.randomness import DrawnAhead
from lightning_modules.diffusion.visibility import partition
from lightning_modules.networks.cameras import Posed

log = logging.getLogger(__name__)

Batch = Sequence[dict[str, Any]]
"""Samples of the prompts that are generated together."""


def check(recipe: dict[str, Any]) -> None:
    """Refuse a recipe whose settings do not fit, before anything is loaded."""
    settings = _settings(recipe)
    require_given(recipe, "sample.clip_shape", settings.clip_shape)
    if settings.sampler != "few_steps":
        require_needs_of_one_time(recipe, require_velocity)
    if student := recipe["needs"].get("student"):
        causal, by = settings.sampler != "bidirectional_ode", f"sample.sampler={settings.sampler}"
        require_causality("student", student, causal, by)
    launch_of(recipe)


def run(recipe: dict[str, Any], folder: RunFolder) -> None:
    """Sample ``needs.student`` on the prompts of ``needs.prompts``."""
    make_together(plan, recipe, folder)


def plan(recipe: dict[str, Any], folder: RunFolder) -> Work:
    """Plan of the shard set; everything is checked before the student is loaded."""
    check(recipe)
    device, settings = prepare(recipe), _settings(recipe)
    prompts = open_shards(folder.need("prompts") / "shards")
    follow_autoencoder(prompts, folder)
    where = folder.need("student")
    require_usable("student", where, "sample.clip_shape", settings.shape, prompts)
    if settings.sampler != "few_steps":
        require_velocity("student", where, has_two_times(where))
    _warn_of_other_blocks(where, settings)
    before_generation(
        where,
        prompts,
        launch_of(recipe),
        device,
        clip_shape=settings.shape,
        sizes=settings.sizes,
        batch=settings.batch,
        cached=settings.sampler != "bidirectional_ode",
        guided=settings.sampler != "few_steps" and settings.guidance != 1,
        half=settings.precision == "bf16-mixed",
        window=settings.window,
        pixels=settings.save != "latents" or "pictures" in recipe["needs"],
    )
    student = frozen(where, device, settings.precision)
    return generated_clips(
        accelerated(student, launch_of(recipe), device),
        prompts,
        settings,
        folder,
        recipe["seed"],
        device,
    )


def _warn_of_other_blocks(where: Path, settings: Sampling) -> None:
    """Say when a student is sampled in other blocks than its run or its causal.json has."""
    known = sampling_config.settings_of(where, network_folder(where)).get("sampling", {})
    trained, now = known.get("blocks"), list(partition(settings.blocks, settings.clip_shape[0]))
    if settings.sampler != "bidirectional_ode" and trained not in (None, now):
        log.warning(
            "sample.blocks: sampled in blocks of %s frames, but %s was trained with %s; if that"
            " is not meant, set blocks", now, where, trained,
        )  # fmt: skip


def _settings(recipe: dict[str, Any]) -> Sampling:
    settings = Sampling(**bind(Sampling, recipe.get("sample", {}), section="sample"))
    if "pictures" in recipe["needs"] and settings.given != 1:
        raise ValueError(
            f"sample.given: {settings.given}, but an image of needs.pictures is one latent frame;"
            " set it to 1"
        )
    return settings


@torch.no_grad()
def generated_clips(
    student: VelocityNetwork,
    prompts: ShardReader,
    settings: Sampling,
    folder: RunFolder,
    seed: int,
    device: torch.device,
) -> Work:
    """The clips as shards, each with its prompt's metadata; whole batches per shard.

    Prompts whose metadata has ``videos`` get so many, each with noise of its own (`video_key`).
    The bits of a clip may depend on the batch that it is computed in.

    Clips are stored in the background; a shard is not finished before its mp4 files are.

    Raises:
        FileNotFoundError: a prompt has no image.
        ValueError: the set has too few prompts, or no conditioning frames.
    """
    numbers = _numbers(prompts, settings)
    conditioning = _conditioning(prompts, settings, folder, numbers, device)
    negative = torch.from_numpy(prompts.negative).to(device)
    cameras = camera_fields(prompts)
    network = Posed(student) if cameras else student
    generate = sampler_of(network, settings, negative)
    compiled = launch_of(folder.recipe).compile
    saver = Saver(settings.save, folder.path, prompts.manifest, device, compiled)
    fields, batch = ["text", *conditioning.fields, *cameras], settings.batch
    about = {"sampler": settings.sampler, "student": folder.identity("student"), "seed": seed}
    about |= {"source": prompts.fingerprint, "given": settings.given, **encoders_of(prompts)}
    about |= conditioning.about

    def batches(videos: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        for start in range(0, len(videos), batch):
            chosen = videos[start : start + batch]
            samples = [prompts.read(number, fields) for number, _ in chosen]
            yield [
                sample | {"key": video_key(sample["key"], index), "prompt": sample["key"]}
                for sample, (_, index) in zip(samples, chosen, strict=True)
            ]

    def draw(samples: Batch) -> DrawnAhead:
        keys = [sample["key"] for sample in samples]
        return DrawnAhead(seed, 0, keys, settings.draws, settings.shape)

    @torch.no_grad()
    def clips_of(samples: Batch, random: DrawnAhead) -> Tensor:
        of_prompts = [sample | {"key": sample["prompt"]} for sample in samples]
        text, frames = stack(samples, "text", device), conditioning.frames(of_prompts)
        inputs = text, random.to(device), frames
        if cameras:
            network.cameras = cameras_of(samples, device)
        with autocast(device, settings.precision):
            clips = generate(*inputs)
            require_sound(clips, random.keys, student, "student", partial(generate, *inputs))
        return clips

    def entry(sample: dict[str, Any], arrays: dict[str, np.ndarray]) -> Sample:
        return sample["key"], arrays | {name: sample[name] for name in cameras}, sample["info"]

    def make(videos: Sequence[tuple[int, int]]) -> Generator[Sample, None, None]:
        drawing = closing(ahead(draw, batches(videos)))
        with Background(saver, batch, device) as background, drawing as drawn:
            for samples, random in drawn:
                done = background.put(samples, clips_of(samples, random))
                yield from starmap(entry, done)
            yield from starmap(entry, background.rest())

    tar = samples_per_shard({"clip": settings.shape, "text": negative.shape})
    whole = max(1, tar // batch) * batch
    videos = _videos(prompts, numbers)
    return Work(saver.kind, about, videos, make, whole, negative=lambda: None)


def video_key(key: str, index: int) -> str:
    """The key of a prompt's video, from which its noise is drawn; the first has the prompt's."""
    return f"{key}-{index}" if index else key


def _videos(prompts: ShardReader, numbers: range) -> list[tuple[int, int]]:
    """(prompt, index) of all videos: the first ones of all prompts, then the second ones, ..."""
    wanted = {n: prompts.read(n, [])["info"].get("videos", 1) for n in numbers}
    most = max(wanted.values(), default=0)
    return [(n, index) for index in range(most) for n in numbers if index < wanted[n]]


def _conditioning(
    prompts: ShardReader,
    settings: Sampling,
    folder: RunFolder,
    numbers: range,
    device: torch.device,
) -> Conditioning:
    """The conditioning frames of the recipe's needs."""
    if "pictures" in folder.recipe["needs"]:
        where = folder.need("pictures")
        return encoded_images(where, prompts, numbers, settings.clip_shape, device)
    if settings.given:
        return first_frames_of_clips(prompts, settings.given, settings.clip_shape, device)
    return Conditioning()


def _numbers(prompts: ShardReader, settings: Sampling) -> range:
    """Indices of the prompts to sample; the set must have them all."""
    numbers = range(settings.first, settings.first + settings.count)
    if numbers.stop > len(prompts):
        raise ValueError(
            f"sample.count: prompts {numbers.start}..{numbers.stop - 1} wanted, {prompts.folder}"
            f" has {len(prompts)}; lower it, or curate more"
        )
    return numbers
