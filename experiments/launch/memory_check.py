"""What each verb asks of memory (``memory.py`` counts it), before it loads a network."""

from collections.abc import Sequence
from pathlib import Path

import torch

from datamodules.shards import ShardReader
from datamodules.video import VideoDataModule
from experiments.folder import RunFolder
from experiments.launch.hardware import Launch
from experiments.launch.memory import FULL, HALF, Load, loading, of_fit, of_rollout, require
from experiments.weights.networks import ROLES, network_folder, numbers_of
from lightning_modules.diffusion.visibility import partition


def before_fit(
    folder: RunFolder,
    data: VideoDataModule,
    launch: Launch,
    half: bool,
    average: bool,
    device: torch.device,
) -> None:
    """Tell, or refuse, a fit. What DeepSpeed splits over devices is told whole, never refused.

    Args:
        half: whether activations are bfloat16.
        average: whether an average of the student is kept.

    Raises:
        ValueError: it cannot fit, with the numbers.
    """
    recipe = folder.recipe
    needed = [role for role in ROLES if role in recipe["needs"]]
    configs = {role: numbers_of(network_folder(folder.need(role))) for role in needed}
    if "network" in recipe:
        configs["student"] = recipe["network"]
    if "num_layers" not in configs.get("student", ()):  # a probe: no Wan
        return
    stage, text = recipe["stage"], _text(data.shards)
    batch, value = data.batch // (launch.world * data.parts), HALF if half else FULL
    loads = {
        role: Load(config, stage["clip_shape"], batch, text, value)
        for role, config in configs.items()
        if "num_layers" in config  # a closed form has none
    }
    sizes = partition(stage["blocks"], stage["clip_shape"][0])
    checkpointing = launch.gradient_checkpointing
    items = of_fit(stage["class"], loads, sizes, average=average, checkpointing=checkpointing)
    enforce = launch.check_memory and launch.strategy != "deepspeed"
    if device.type != "cpu":
        require(loading(loads), torch.device("cpu"), enforce)
    require(items, device, enforce)


def before_generation(
    where: Path,
    prompts: ShardReader,
    launch: Launch,
    device: torch.device,
    *,
    clip_shape: Sequence[int],
    sizes: Sequence[int],
    batch: int,
    cached: bool,
    guided: bool,
    half: bool,
    window: int = 0,
) -> None:
    """Tell, or refuse, a sampler of the network at ``where``.

    Args:
        clip_shape: ``[F, C, H, W]`` of what is generated.
        sizes: of its blocks.
        cached: block by block, else the whole clip at once.
        guided: with a second branch.
        half: whether activations are bfloat16.
        window: frames a block sees; 0: all.

    Raises:
        ValueError: it cannot fit, with the numbers.
    """
    config = numbers_of(network_folder(where))
    if "num_layers" not in config:  # a closed form
        return
    load = Load(config, clip_shape, batch, _text(prompts), HALF if half else FULL)
    frames = max(sizes) if cached else clip_shape[0]
    held = min(window or clip_shape[0], clip_shape[0]) if cached else 0
    require(of_rollout(load, frames, held, guided), device, launch.check_memory)


def _text(shards: ShardReader) -> int:
    """Tokens of a prompt."""
    return shards.manifest["fields"]["text"]["shape"][0]
