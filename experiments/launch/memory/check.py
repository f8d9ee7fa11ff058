"""Memory checks of each verb (estimated in ``count.py``) before it loads a network."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from datamodules.shards.reader import ShardReader
from datamodules.video import VideoDataModule
from experiments.checkpoints.networks import (
    ROLES,
    has_weights,
    meta_network,
    network_class,
    network_section,
)
from experiments.launch.hardware import Launch
from experiments.launch.memory.count import (
    FULL,
    HALF,
    Item,
    Load,
    Zero,
    loading,
    of_encoder,
    of_fit,
    of_rollout,
    require,
)
from experiments.launch.stages import asked_of_networks, stage_class
from experiments.runs.folder import RunFolder
from lightning_modules.networks.encoders import wan_vae_dtype
from lightning_modules.networks.pipeline_folder import locate

log = logging.getLogger(__name__)


def before_fit(
    folder: RunFolder,
    data: VideoDataModule,
    launch: Launch,
    half: bool,
    average: bool,
    device: torch.device,
) -> None:
    """Log the memory of a fit, or refuse it. Ranks of a node share host memory and load at once.

    Args:
        half: whether activations are bfloat16.
        average: whether an EMA of the student is kept.

    Raises:
        ValueError: it cannot fit, with the numbers.
    """
    recipe = folder.recipe
    needed = [role for role in ROLES if role in recipe["needs"]]
    configs = {role: network_section(folder.need(role)) for role in needed}
    if "network" in recipe:
        configs["student"] = recipe["network"]
    if "student" in configs:
        configs["student"] = {**configs["student"], **recipe["fit"].get("student_with", {})}
    if "student" not in (configs := _countable(configs)):
        return
    configs["student"] = as_trained(recipe, configs["student"])
    stage, text = recipe["stage"], _text(data.shards)
    batch, value = data.batch // (launch.world * data.micro_batches), HALF if half else FULL
    loads = {
        role: Load(config, stage["clip_shape"], batch, text, value)
        for role, config in configs.items()
    }
    shapes = {name: entry["shape"] for name, entry in data.shards.manifest["fields"].items()}
    items = of_fit(
        asked_of_networks(recipe, shapes),
        loads,
        average=average,
        checkpointing=launch.gradient_checkpointing,
        zero=Zero(launch.zero_stage, launch.world) if launch.strategy == "deepspeed" else Zero(),
    )
    if device.type == "cpu":
        require(items, device, launch.check_memory, processes=launch.devices)
        return
    require(loading(loads), torch.device("cpu"), launch.check_memory, processes=launch.devices)
    require(items, device, launch.check_memory)


def as_trained(recipe: Mapping[str, Any], student: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section ``network`` of a student, with the second time that its stage gives it."""
    if not getattr(stage_class(recipe), "two_times", False):
        return student
    network = meta_network(student).with_second_time()
    return {**student, "class": type(network).__name__}


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
    pixels: bool = False,
) -> None:
    """Log, or refuse, the memory of sampling from the network at ``where``.

    Args:
        clip_shape: ``[F, C, H, W]`` of what is generated.
        sizes: of its blocks.
        cached: block by block with a KV cache, else the whole clip at once.
        guided: with an unconditional branch (CFG).
        half: whether activations are bfloat16.
        window: frames a block sees; 0: all.
        pixels: whether the autoencoder of ``prompts`` encodes or decodes.

    Raises:
        ValueError: it cannot fit, with the numbers.
    """
    configs = _countable({"network": network_section(where)})
    if not configs:
        return
    load = Load(configs["network"], clip_shape, batch, _text(prompts), HALF if half else FULL)
    frames = max(sizes) if cached else clip_shape[0]
    held = min(window or clip_shape[0], clip_shape[0]) if cached else 0
    items = of_rollout(load, frames, held, guided) + (
        _autoencoder(prompts, wan_vae_dtype(device)) if pixels else []
    )
    require(items, device, launch.check_memory)


def before_encoding(
    where: Path, launch: Launch, device: torch.device, **dtypes: torch.dtype
) -> None:
    """Log, or refuse, the memory of the encoders of the pipeline at ``where``.

    Args:
        dtypes: of the weights of each part that will be used, ``vae`` or ``text_encoder``.

    Raises:
        FileNotFoundError, ValueError: a part that is incomplete, or cannot fit, with the numbers.
    """
    home = locate(where, *dtypes)
    items = [of_encoder(home / part, dtype.itemsize) for part, dtype in dtypes.items()]
    require(items, device, launch.check_memory)


def _countable(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Those of the networks that have weights; none, and the log says so, if one is not Wan's."""
    kinds = {role: network_class(config) for role, config in configs.items()}
    heavy = {role: kind for role, kind in kinds.items() if has_weights(kind)}
    for role, kind in heavy.items():
        if not getattr(kind, "counted_as_wan", False):
            log.warning("memory: not counted for %s (%s), so not checked", kind.__name__, role)
            return {}
    return {role: configs[role] for role in heavy}


def _autoencoder(shards: ShardReader, dtype: torch.dtype) -> list[Item]:
    """The autoencoder of a set's latents, if it has weights; the tiny world's has none."""
    made_by = shards.manifest["autoencoder"]
    if made_by["class"] != "WanVAE":
        return []
    return [of_encoder(locate(made_by["folder"], "vae") / "vae", dtype.itemsize)]


def _text(shards: ShardReader) -> int:
    """Tokens of a prompt."""
    return shards.manifest["fields"]["text"]["shape"][0]
