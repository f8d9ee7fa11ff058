"""How much memory a verb needs, counted from configs and told before anything is loaded.

What follows from shapes is exact: weights, gradients, optimizer, averages, KV caches. Marked ``~``
is what was measured per token on small networks (tests/test_memory.py measures it again). Not
counted: CUDA's own gigabyte, fragmentation, buffers of DDP and DeepSpeed, layers that ZeRO-3 has
gathered, and what encoders make beside their weights.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open

from experiments.checkpoints.networks import meta_network
from experiments.launch.memory import cgroup
from lightning_modules.networks.pipeline_folder import weight_files
from lightning_modules.networks.wan.precision import to_bfloat16

log = logging.getLogger(__name__)

GIB = 2**30
BESIDE_CLEAN = ("TeacherForcing", "CausalODE", "CausalCD", "CausalDMD")
"""Stages whose student sees a clip twice in one pass: noisy, and clean as its own past."""
FOLLOWED = ("CausalCD",)
"""Stages that keep a copy of the student of their own."""
ROLLED_OUT = ("AsymmetricDMD",)
"""Stages whose student generates, with gradient, beside a cache."""
FULL, HALF = 4, 2  # bytes of a value in float32, in bfloat16
SAVED = {FULL: (84.0, 8.0), HALF: (75.0, 4.0)}
"""Bytes that a layer saves for backward, per token and channel of its width and of its ffn."""
SAVED_TEXT = 12  # and per token of the prompt and channel of its width
ATTENDING = {FULL: (58.0, 0.0), HALF: (37.0, 0.0)}
FEEDING = {FULL: (49.0, 8.0), HALF: (25.0, 4.0)}
"""Bytes that a pass holds while a layer attends, or runs its ffn, likewise."""


@dataclass(frozen=True)
class Item:
    """One use of memory, in bytes."""

    what: str
    bytes: float
    exact: bool = True


@dataclass(frozen=True)
class Zero:
    """What DeepSpeed splits over all devices.

    Args:
        stage: ``launch.zero_stage``; 0: nothing is split.
        devices: of all nodes.
    """

    stage: int = 0
    devices: int = 1

    def share(self, whole: float, stage: int) -> float:
        """A device's bytes of what is split from ``stage`` on."""
        return whole / self.devices if self.stage >= stage else whole


@dataclass(frozen=True)
class Load:
    """A network at work on one device.

    Args:
        config: of the network: the constructor's arguments.
        clip_shape: ``[F, C, H, W]``.
        batch: clips at once.
        text: tokens of a prompt.
        value: bytes of an activation, `FULL` or `HALF`.
    """

    config: Mapping[str, Any]
    clip_shape: Sequence[int]
    batch: int
    text: int
    value: int

    @cached_property
    def parameters(self) -> int:
        """How many weights the network has."""
        return sum(weight.numel() for weight in meta_network(self.config).parameters())

    @cached_property
    def frozen(self) -> int:
        """Bytes of the weights of a network that is only asked: what autocast rounds is rounded."""
        network = meta_network(self.config)
        if self.value == HALF:
            to_bfloat16(network)
        return sum(weight.numel() * weight.element_size() for weight in network.parameters())

    @property
    def width(self) -> int:
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]

    @property
    def layers(self) -> int:
        return self.config["num_layers"]

    def tokens(self, frames: int) -> int:
        """Of so many frames of the whole batch."""
        _, high, wide = self.config.get("patch_size", (1, 2, 2))
        _, _, height, width = self.clip_shape
        return self.batch * frames * (height // high) * (width // wide)

    def keys_and_values(self, frames: int, text: int = 0) -> int:
        """Bytes in all layers, of frames and of a prompt."""
        tokens = self.tokens(frames) + self.batch * text
        return 2 * self.layers * tokens * self.width * self.value

    def layer(self, frames: int) -> float:
        """Bytes that one layer saves for the backward pass, the prompt's keys and values aside."""
        return self._of(SAVED, frames)

    def working(self, frames: int) -> float:
        """Bytes that a pass holds at most while it runs, beside what it saves."""
        return max(self._of(ATTENDING, frames), self._of(FEEDING, frames))

    def saved(self, frames: int, checkpointing: bool, passes: int = 1) -> float:
        """Bytes kept for the backward of so many frames, in passes that all read the prompt."""
        prompts = passes * self.batch * self.text * SAVED_TEXT * self.width
        if not checkpointing:
            return self.layers * (self.layer(frames) + prompts)
        inputs = self.tokens(frames) * self.value * self.width
        return self.layers * (inputs + prompts) + self.layer(frames) / passes

    def _of(self, bytes_each: Mapping[int, tuple[float, float]], frames: int) -> float:
        of_width, of_ffn = bytes_each[self.value]
        return self.tokens(frames) * (of_width * self.width + of_ffn * self.config["ffn_dim"])


def of_fit(
    stage: str,
    loads: Mapping[str, Load],
    block_sizes: Sequence[int],
    *,
    average: bool,
    checkpointing: bool,
    zero: Zero = Zero(),
) -> list[Item]:
    """Memory of a training step on one device.

    Args:
        stage: its class.
        loads: by role; all but the ``teacher`` are trained, one at a time.
        block_sizes: frames of each block.
        average: whether one of the student is kept for the hand-off.
        checkpointing: ``launch.gradient_checkpointing``.
        zero: what is split, and over how many devices.
    """
    trained = {role: load for role, load in loads.items() if role != "teacher"}
    counts, student = [load.parameters for load in trained.values()], loads["student"]
    half, copies = student.value == HALF, average + (stage in FOLLOWED)
    frames = sum(block_sizes) * (2 if stage in BESIDE_CLEAN else 1)
    weights = FULL * sum(counts)
    own_copy = weights if zero.stage in (1, 2) else 0  # ZeRO-3 has no other weights
    items = [
        Item(f"weights of {' and '.join(trained)}, float32", zero.share(weights, 3)),
        Item("their gradients, one network at a time", zero.share(FULL * max(counts), 2)),
        Item("AdamW: two moments of each weight", zero.share(2 * weights, 1)),
        Item("DeepSpeed's own copy of the weights, float32", zero.share(own_copy, 1)),
        Item("averages of the student, float32", zero.share(copies * FULL * student.parameters, 3)),
        Item("weights rounded by autocast, bfloat16", HALF * max(counts) * half),
    ]
    if teacher := loads.get("teacher"):
        dtype = "bfloat16" if half else "float32"
        items.append(Item(f"weights of teacher, {dtype}", zero.share(teacher.frozen, 3)))
    saved = {role: load.saved(frames, checkpointing) for role, load in trained.items()}
    if stage in ROLLED_OUT:
        items.append(Item("KV cache", student.keys_and_values(frames, student.text)))
        saved["student"] = student.saved(frames, checkpointing, passes=len(block_sizes))
        if not checkpointing:  # attention keeps what it joined; recomputed, all share the cache
            pasts = sum(sum(block_sizes[:number]) for number in range(len(block_sizes)))
            items.append(Item("pasts kept by each block's graph", student.keys_and_values(pasts)))
    running = max(load.working(frames) for load in loads.values())
    items.append(Item("activations for the backward pass", max(saved.values()), False))
    items.append(Item("one layer at work", running, False))
    return [item for item in items if item.bytes]


def loading(loads: Mapping[str, Load]) -> list[Item]:
    """Memory of the host while networks are read: all of them, in float32."""
    return [Item(f"{role}, as it is read", FULL * load.parameters) for role, load in loads.items()]


def of_rollout(load: Load, frames: int, cached: int, guided: bool) -> list[Item]:
    """Memory of generating clips, without gradient.

    Args:
        frames: that pass the network at once: a block, or the clip.
        cached: frames whose keys and values are held; 0: no cache.
        guided: with a second branch, which has its own cache.
    """
    items = [Item("weights", load.frozen)]
    if cached:
        held = load.keys_and_values(cached, load.text)
        items.append(Item("KV cache", (1 + guided) * held))
    return [*items, Item("one layer at work", load.working(frames), False)]


def of_encoder(part: Path, value: int) -> Item:
    """Weights of a pipeline's VAE or text encoder, ``value`` bytes each, by its files' headers.

    Raises:
        FileNotFoundError, ValueError: files that are missing or damaged.
    """
    count = 0
    for file in weight_files(part):
        with safe_open(file, "pt") as opened:
            names = opened.keys()
            count += sum(prod(opened.get_slice(name).get_shape()) for name in names)
    return Item(f"weights of {part.name}", value * count)


def require(items: Sequence[Item], device: torch.device, enforce: bool, processes: int = 1) -> None:
    """Tell what will be needed, and refuse what cannot fit.

    Args:
        items: of one process.
        enforce: ``launch.check_memory``; false only tells.
        processes: that take as much of the same memory at the same time.

    Raises:
        ValueError: with every number, where less is free.
    """
    free, where = _free(device)
    needed = processes * sum(item.bytes for item in items)
    lines = [f"{i.bytes / GIB:10.2f} GiB {' ' if i.exact else '~'} {i.what}" for i in items]
    whole = "in all" if processes == 1 else f"in all {processes} processes of this machine"
    lines.append(f"{needed / GIB:10.2f} GiB   {whole}; {free / GIB:.2f} GiB are free on {where}")
    table = "\n".join(lines)
    if enforce and needed > free:
        raise ValueError(
            f"this does not fit into memory:\n{table}\nlower the batch (launch.batch_per_device,"
            " sample.batch, pairs.batch), set launch.gradient_checkpointing=true, split a fit over"
            " more devices (launch.strategy=deepspeed, launch.zero_stage=3), or use larger ones;"
            " launch.check_memory=false tries it all the same"
        )
    log.info("memory (~ estimated):\n%s", table)


def _free(device: torch.device) -> tuple[int, str]:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], torch.cuda.get_device_name(device)
    available, allowed = psutil.virtual_memory().available, cgroup.free_memory()
    if allowed is not None and allowed < available:
        return allowed, "this machine within the limit of this job or container (cgroup)"
    return available, "this machine"
