"""``pairs``: store a teacher's ODE trajectories, from noise to its end, for ODE distillation.

Two teachers, two pasts (Causal Forcing, sec. 3; CausVid):

    causal          the AR teacher generates each block beside the *true* past of a real clip; the
                    KV cache is fed the real blocks, so the clean past is encoded once and not 2 N
                    times
    bidirectional   the base model generates whole clips from prompts alone

Stored are the states at the few-step times and the end, with the times themselves: a trajectory's
noise levels are read, never derived again.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.shards import ShardReader, ShardWriter, open_shards
from experiments.bind import bind
from experiments.folder import RunFolder
from experiments.hardware import launch_of, prepare
from experiments.networks import load_network
from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.flow import Solver, time_grid
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import Past, Solve, rollout, solve
from lightning_modules.diffusion.visibility import partition

log = logging.getLogger(__name__)
GIVEN = {"teacher", "clips", "folder", "seed", "device"}


def check(recipe: dict[str, Any]) -> None:
    """Refuse a recipe whose settings do not fit, before anything is loaded."""
    settings = bind(generate_pairs, recipe["pairs"], GIVEN, "pairs")
    _kept(settings["intervals"], settings["few_steps"])
    launch_of(recipe)


def run(recipe: dict[str, Any], folder: RunFolder) -> None:
    """Generate the pairs of ``needs.teacher`` on the clips (or prompts) of ``needs.data``."""
    device = prepare(recipe)
    settings = bind(generate_pairs, recipe["pairs"], GIVEN, "pairs")
    generate_pairs(
        teacher=load_network(folder.need("teacher")).to(device).eval().requires_grad_(False),
        clips=open_shards(folder.need("data") / "shards"),
        folder=folder,
        seed=recipe["seed"],
        device=device,
        **settings,
    )


@torch.no_grad()
def generate_pairs(
    teacher: nn.Module,
    clips: ShardReader,
    folder: RunFolder,
    seed: int,
    device: torch.device,
    *,
    past: str,
    count: int,
    batch: int,
    clip_shape: list[int],
    blocks: str | int | list[int],
    intervals: int,
    solver: Solver,
    few_steps: int,
    shift: float,
    guidance: float,
    stored: Literal["float16", "float32"],
) -> None:
    """Write ``count`` trajectories as shards of kind ``pairs``.

    Args:
        past: ``causal`` or ``bidirectional``.
        count: how many clips (prompts), from the front of the set.
        clip_shape: ``[F, C, H, W]``.
        blocks: of the causal teacher; stored, because pairs fit no other partition.
        intervals: steps of the shifted grid; published 48.
        solver: of a step, ``euler`` (published) or ``heun``.
        few_steps: how many noisy states are kept; must divide ``intervals``; published 4.
        guidance: standard scale; published 6.
        stored: ``float16`` rounds by 5e-4, what a video's bf16 networks cannot see, in half the
            storage; ``float32`` is for worlds where the end is compared with an exact one.

    Raises:
        ValueError: unknown ``past``, too few clips, clips of another shape.
    """
    if past not in ("causal", "bidirectional"):
        raise ValueError(f"pairs.past: {past!r} is neither causal nor bidirectional")
    if count > len(clips):
        raise ValueError(
            f"pairs.count: {count} clips wanted, {clips.folder} has {len(clips)}; lower it, or"
            " curate more"
        )
    grid, kept = time_grid(intervals, shift), _kept(intervals, few_steps)
    sizes = partition(blocks, clip_shape[0])
    negative = torch.from_numpy(clips.negative).to(device)
    fields = ["latents", "text"] if past == "causal" else ["text"]
    writer = ShardWriter(
        folder.path / "shards",
        "pairs",
        about={
            "past": past,
            "times": [grid[index].item() for index in kept[:-1]],
            "intervals": intervals,
            "solver": solver,
            "guidance": guidance,
            "shift": shift,
            "blocks": list(sizes),
            "teacher": folder.need("teacher").name,
            "source": clips.fingerprint,
            "seed": seed,
        },
        negative=clips.negative,
    )
    calls: Counter[str] = Counter()
    hook = teacher.register_forward_hook(lambda *_: calls.update(["teacher_forwards"]))
    with writer:
        for start in range(0, count, batch):
            samples = [clips.read(i, fields) for i in range(start, min(start + batch, count))]
            keys = [sample["key"] for sample in samples]
            text = _stack(samples, "text", device)
            noise = Randomness(seed, 0, keys, device).normal("noise", clip_shape)
            if past == "causal":
                sampler = Solve(grid, kept, solver)
                source = Past(teacher, text, negative, guidance)
                truth = _stack(samples, "latents", device)
                rollout(source, noise, sizes, sampler, truth=truth)
                trajectory = torch.cat(sampler.states, dim=2)
            else:
                v = forcing.bidirectional_ode(teacher, text, negative, guidance)
                trajectory = solve(v, noise, grid.float().to(device), kept, solver)[1]
            for sample, states in zip(samples, trajectory.cpu().numpy(), strict=True):
                arrays = {name: sample[name] for name in fields}
                arrays["trajectory"] = states.astype(stored)
                writer.write(sample["key"], arrays, sample["info"])
            folder.progress(start + len(samples), count, "trajectories")
    hook.remove()
    folder.record({"counters": {"trajectories": count, **calls}})
    log.info("%d %s trajectories of %d states", count, past, len(kept))


def _kept(intervals: int, few_steps: int) -> Sequence[int]:
    """The grid points to store: the few-step times, and the end."""
    if intervals % few_steps:
        raise ValueError(
            f"pairs.intervals: {intervals} is no multiple of pairs.few_steps {few_steps}, so the"
            " few-step times are not on the grid; choose a multiple"
        )
    return range(0, intervals + 1, intervals // few_steps)


def _stack(samples: list[dict[str, Any]], field: str, device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack([s[field] for s in samples])).float().to(device)
