"""``pairs``: store a teacher's ODE trajectories, from noise to x0, for ODE distillation.

Two teachers with two kinds of context (Causal Forcing, sec. 3; CausVid):

    causal          the AR teacher generates each block conditioned on the *clean* context of a real
                    clip; the KV cache is filled with the real blocks once, not 2 N times
    bidirectional   the base model generates whole clips from prompts alone

Stored are the states at the few-step times and the end point, with the times themselves: readers
never recompute noise levels. Several processes may make a set together, and an interrupted set is
resumed (``launch/shard_workers.py``).
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from datamodules.shards.reader import ShardReader, open_shards, require
from datamodules.shards.work import Sample, Work
from experiments.checkpoints.networks import class_of, has_weights, network_config, network_folder
from experiments.generation.faults import require_sound
from experiments.generation.generation import (
    autocast,
    camera_fields,
    cameras_of,
    check_precision,
    encoders_of,
    frozen,
    require_given,
    require_usable,
    samples_per_shard,
    stack,
)
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
from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.fast_past import FastPast
from lightning_modules.diffusion.flow import Solver, time_grid
from lightning_modules.diffusion.forcing import VelocityNetwork
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import Solve, rollout, solve
from lightning_modules.diffusion.visibility import partition
from lightning_modules.networks.cameras import Posed
from lightning_modules.networks.fingerprint import digest, digest_of_weights
from lightning_modules.ranges import (
    Blocks,
    ClipShape,
    NonNegative,
    Positive,
    PositiveInt,
    SolverSteps,
)

GIVEN = {"teacher", "name", "weights", "clips", "seed", "device"}


def check(recipe: dict[str, Any]) -> None:
    """Refuse a recipe whose settings do not fit, before anything is loaded."""
    settings = bind(trajectories, recipe.get("pairs", {}), GIVEN, "pairs")
    _kept(settings["intervals"], settings["few_steps"])
    partition(settings["blocks"], settings["clip_shape"][0])
    check_precision(settings["precision"], "pairs")
    require_given(recipe, "pairs.clip_shape", settings["clip_shape"])
    require_needs_of_one_time(recipe, require_velocity)
    if teacher := recipe["needs"].get("teacher"):
        past = settings["past"]
        require_causality("teacher", teacher, past == "causal", f"pairs.past={past}")
    launch_of(recipe)


def run(recipe: dict[str, Any], folder: RunFolder) -> None:
    """Generate the pairs of ``needs.teacher`` on the clips (or prompts) of ``needs.data``."""
    make_together(plan, recipe, folder)


def plan(recipe: dict[str, Any], folder: RunFolder) -> Work:
    """Plan of the shard set; everything is checked before the teacher is loaded."""
    check(recipe)
    device = prepare(recipe)
    settings = bind(trajectories, recipe["pairs"], GIVEN, "pairs")
    clips = open_shards(folder.need("data") / "shards")
    where, launch = folder.need("teacher"), launch_of(recipe)
    require_usable("teacher", where, "pairs.clip_shape", settings["clip_shape"], clips)
    require_velocity("teacher", where, has_two_times(where))
    if settings["past"] == "causal":
        require(clips, latents=tuple(settings["clip_shape"]))
    before_generation(
        where,
        clips,
        launch,
        device,
        clip_shape=settings["clip_shape"],
        sizes=partition(settings["blocks"], settings["clip_shape"][0]),
        batch=settings["batch"],
        cached=settings["past"] == "causal",
        guided=settings["guidance"] != 1,
        half=settings["precision"] == "bf16-mixed",
    )
    return trajectories(
        teacher=accelerated(frozen(where, device, settings["precision"]), launch, device),
        name=folder.identity("teacher"),
        weights=_identity(network_folder(where)),
        clips=clips,
        seed=recipe["seed"],
        device=device,
        **settings,
    )


def trajectories(
    teacher: VelocityNetwork,
    name: str,
    weights: str,
    clips: ShardReader,
    seed: int,
    device: torch.device,
    *,
    past: Literal["causal", "bidirectional"],
    count: PositiveInt,
    batch: PositiveInt,
    clip_shape: ClipShape,
    blocks: Blocks,
    intervals: SolverSteps,
    solver: Solver,
    few_steps: SolverSteps,
    shift: Positive,
    guidance: NonNegative,
    stored: Literal["float16", "float32"],
    precision: str = "32-true",
) -> Work:
    """``count`` trajectories as shards of kind ``pairs``, whole batches per shard.

    Args:
        teacher: frozen, on the device.
        name: of the teacher, for the manifest.
        weights: hash of the teacher's weights: a set is not resumed with different weights.
        past: ``causal`` or ``bidirectional``.
        count: how many clips (prompts), from the front of the set.
        clip_shape: ``[F, C, H, W]``.
        blocks: of the causal teacher; stored, since pairs are valid for this partition only.
        intervals: steps of the shifted grid; published 48.
        solver: ``euler`` (published) or ``heun``.
        few_steps: how many noisy states are kept; must divide ``intervals``; published 4.
        guidance: CFG scale w in u + w (c - u); published 6.
        stored: ``float16`` rounds by 5e-4, below the precision of bf16 networks, in half the
            storage; ``float32`` is for worlds with an exact end point to compare with.
        precision: of the network's forward passes; states are always float32.

    Raises:
        ValueError: too few clips, clips of another shape.
    """
    if count > len(clips):
        raise ValueError(
            f"pairs.count: {count} clips wanted, {clips.folder} has {len(clips)}; lower it, or"
            " curate more"
        )
    grid, kept = time_grid(intervals, shift), _kept(intervals, few_steps)
    sizes = partition(blocks, clip_shape[0])
    negative = torch.from_numpy(clips.negative).to(device)
    cameras = camera_fields(clips)
    fields = [*(["latents", "text"] if past == "causal" else ["text"]), *cameras]
    network = Posed(teacher) if cameras else teacher
    shapes = {name: clips.manifest["fields"][name]["shape"] for name in fields}
    about = {
        "past": past,
        "times": [grid[index].item() for index in kept[:-1]],
        "intervals": intervals,
        "solver": solver,
        "guidance": guidance,
        "shift": shift,
        "blocks": list(sizes),
        "teacher": name,
        "teacher_weights": weights,
        "source": clips.fingerprint,
        "seed": seed,
        **encoders_of(clips),
    }

    beside = FastPast(network, negative[None], negative, guidance, frames=clip_shape[0])

    def solved(samples: list[dict[str, Any]]) -> Tensor:
        """Kept states [B, S, F, C, H, W]."""
        keys = [sample["key"] for sample in samples]
        text = stack(samples, "text", device)
        if cameras:
            network.cameras = cameras_of(samples, device)
        noise = Randomness(seed, 0, keys, device).normal("noise", clip_shape)
        if past == "bidirectional":
            v = forcing.bidirectional_ode(network, text, negative, guidance)
            return solve(v, noise, grid.float().to(device), kept, solver)[1]
        sampler, truth = Solve(grid, kept, solver), stack(samples, "latents", device)
        rollout(beside.restart(text), noise, sizes, sampler, truth=truth)
        return torch.cat(sampler.states, dim=2)

    def make(numbers: Sequence[int]) -> Iterator[Sample]:
        for start in range(0, len(numbers), batch):
            samples = [clips.read(number, fields) for number in numbers[start : start + batch]]
            with torch.no_grad(), autocast(device, precision):
                states = solved(samples)
                keys = [sample["key"] for sample in samples]
                require_sound(states, keys, teacher, "teacher", partial(solved, samples))
            trajectory = states.cpu().numpy().astype(stored)
            for sample, one in zip(samples, trajectory, strict=True):
                arrays = {field: sample[field] for field in fields}
                yield sample["key"], {**arrays, "trajectory": one}, sample["info"]

    tar = samples_per_shard({**shapes, "trajectory": (len(kept), *clip_shape)})
    whole = max(1, tar // batch) * batch
    return Work("pairs", about, range(count), make, whole, lambda: clips.negative)


def _kept(intervals: int, few_steps: int) -> Sequence[int]:
    """The grid points to store: the few-step times and the end point."""
    if intervals % few_steps:
        raise ValueError(
            f"pairs.intervals: {intervals} is no multiple of pairs.few_steps {few_steps}, so the"
            " few-step times are not on the grid; choose a multiple"
        )
    return range(0, intervals + 1, intervals // few_steps)


def _identity(network: Path) -> str:
    """Hash of a network: of its settings and, if it has any, its weights."""
    if has_weights(class_of(network)):
        return digest_of_weights(network)
    return digest(json.dumps(network_config(network), sort_keys=True).encode())
