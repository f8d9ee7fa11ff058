"""How much memory a verb needs, estimated from configs before anything is loaded.

A training step's network calls are recorded by a ``DryRun`` of the stage. Items that follow from
shapes are exact: weights, gradients, optimizer, EMA, KV caches. Items marked ``~`` use constants
per token fitted on small networks (tests/test_memory.py measures them again) and count the last
layer as any other, though it keeps less of frames that are not predicted. Not counted: the
CUDA context (about 1 GB), fragmentation, buffers of DDP and DeepSpeed, layers gathered by ZeRO-3,
and activations of encoders.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open

from experiments.checkpoints.networks import bf16, meta_network
from experiments.launch.memory import cgroup
from lightning_modules.networks.pipeline_folder import weight_files
from lightning_modules.networks.tally import Call
from lightning_modules.ranges import Checkpointing
from lightning_modules.training.dry_run import DryRun

log = logging.getLogger(__name__)

GIB = 2**30
FULL, HALF = 4, 2  # bytes of a value in float32, in bfloat16
SAVED = {FULL: (84.0, 8.0), HALF: (75.0, 4.0)}
"""Bytes that a layer saves for backward, per token and channel of its width and of its ffn."""
SAVED_TEXT = 12  # and per token of the prompt and channel of its width
ATTENDING = {FULL: (58.0, 0.0), HALF: (37.0, 0.0)}
FEEDING = {FULL: (49.0, 8.0), HALF: (25.0, 4.0)}
"""Bytes that a pass holds while a layer attends, or runs its ffn, likewise."""


@dataclass(frozen=True)
class Item:
    """One item of memory, in bytes."""

    what: str
    bytes: float
    exact: bool = True


@dataclass(frozen=True)
class Zero:
    """What DeepSpeed ZeRO partitions over all devices.

    Args:
        stage: ``launch.zero_stage``; 0: nothing is partitioned.
        devices: of all nodes.
    """

    stage: int = 0
    devices: int = 1

    def share(self, whole: float, stage: int) -> float:
        """A device's bytes of a tensor that is partitioned from ``stage`` on."""
        return whole / self.devices if self.stage >= stage else whole


@dataclass(frozen=True)
class Load:
    """A network and its inputs on one device.

    Args:
        config: of the network, which is counted as Wan's: a recipe's section ``network``.
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
        """Bytes of the weights of a frozen network: what autocast rounds is stored rounded."""
        network = meta_network(self.config)
        if self.value == HALF:
            bf16(network)
        return sum(weight.numel() * weight.element_size() for weight in network.parameters())

    @property
    def width(self) -> int:
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]

    @property
    def layers(self) -> int:
        return self.config["num_layers"]

    @property
    def kinds(self) -> int:
        """Of heads: RoPE's, and PRoPE's."""
        return 1 + bool(self.config.get("cameras") and self.config.get("prope", True))

    def tokens(self, frames: int) -> int:
        """Tokens of so many frames, over the whole batch."""
        _, high, wide = self.config.get("patch_size", (1, 2, 2))
        _, _, height, width = self.clip_shape
        return self.batch * frames * (height // high) * (width // wide)

    def keys_and_values(self, frames: int, text: int = 0) -> int:
        """Bytes in all layers, of frames and of a prompt."""
        tokens = self.tokens(frames) + self.batch * text
        frames_only = (self.kinds - 1) * self.tokens(frames)
        return 2 * self.layers * (tokens + frames_only) * self.width * self.value

    def layer(self, frames: int) -> float:
        """Bytes that one layer saves for the backward pass, the prompt's keys and values aside."""
        return self._of(SAVED, frames)

    def working(self, frames: int) -> float:
        """Peak bytes of temporaries during a pass, beyond what it saves."""
        return max(self._of(ATTENDING, frames), self._of(FEEDING, frames))

    def saved(self, calls: Sequence[Call], checkpointing: Checkpointing) -> float:
        """Bytes kept for the backward pass of these calls, which all read the prompt."""
        frames = [call.frames * call.batch for call in calls]
        clips = sum(call.batch for call in calls)
        prompts = clips * self.batch * self.text * SAVED_TEXT * self.width
        if not checkpointing:
            return self.layers * (self.layer(sum(frames)) + prompts)
        inputs = self.tokens(sum(frames)) * self.value * self.width
        attended = self.attended(sum(frames)) if checkpointing != "full" else 0
        return self.layers * (inputs + attended + prompts) + self.layer(max(frames, default=0))

    def attended(self, frames: int) -> float:
        """Bytes of self-attention's output and log-sum-exp in one layer."""
        heads = self.config["num_attention_heads"]
        return self.kinds * self.tokens(frames) * (self.value * self.width + FULL * heads)

    def caches(self, calls: Sequence[Call]) -> float:
        """Bytes of the KV caches alive at once during these calls."""
        return max((self.keys_and_values(c.held, c.prompts * self.text) for c in calls), default=0)

    def _of(self, bytes_each: Mapping[int, tuple[float, float]], frames: int) -> float:
        of_width, of_ffn = bytes_each[self.value]
        return self.tokens(frames) * (of_width * self.width + of_ffn * self.config["ffn_dim"])


def of_fit(
    asked: DryRun,
    loads: Mapping[str, Load],
    *,
    average: bool,
    checkpointing: Checkpointing,
    zero: Zero = Zero(),
) -> list[Item]:
    """Memory of a training step on one device.

    Args:
        asked: recorded calls of the stage's networks, by step.
        loads: by role; a network without weights has none.
        average: whether an EMA of the student is kept for the hand-off.
        checkpointing: ``launch.gradient_checkpointing``, of trained networks.
        zero: partitioning over devices.
    """
    networks = {role: held for role, held in asked.networks.items() if held.like in loads}
    trained = {role: loads[role] for role, held in networks.items() if held.trained}
    copies = [loads[held.like] for role, held in networks.items() if held.like != role]
    copies += [loads["student"]] * average
    half, counts = loads["student"].value == HALF, [load.parameters for load in trained.values()]
    weights, copied = FULL * sum(counts), FULL * sum(load.parameters for load in copies)
    own_copy = weights if zero.stage in (1, 2) else 0  # ZeRO-3 keeps no full copy of the weights
    items = [
        Item(f"weights of {' and '.join(trained)}, float32", zero.share(weights, 3)),
        Item("their gradients, one network at a time", zero.share(FULL * max(counts), 2)),
        Item("AdamW: two moments of each weight", zero.share(2 * weights, 1)),
        Item("DeepSpeed's own copy of the weights, float32", zero.share(own_copy, 1)),
        Item("averages of the student, float32", zero.share(copied, 3)),
        Item("weights rounded by autocast, bfloat16", HALF * max(counts) * half),
    ]
    for role in [role for role in networks if role in loads and role not in trained]:
        dtype = "bfloat16" if half else "float32"
        items.append(Item(f"weights of {role}, {dtype}", zero.share(loads[role].frozen, 3)))
    return [item for item in items + _of_steps(asked, loads, checkpointing) if item.bytes]


def _of_steps(asked: DryRun, loads: Mapping[str, Load], checkpointing: Checkpointing) -> list[Item]:
    """Maximum over steps and their random outcomes, for each item separately."""

    def most(
        of_calls: Callable[[Load, Sequence[Call], Checkpointing], float], together=sum
    ) -> float:
        return max(
            together(
                of_calls(loads[held.like], calls, held.trained and checkpointing)
                for role, calls in case.calls.items()
                if calls and (held := asked.networks[role]).like in loads
            )
            for cases in asked.steps.values()
            for case in cases
        )

    def graph(calls: Sequence[Call]) -> list[Call]:
        return [call for call in calls if call.backward]

    def pasts(load: Load, calls: Sequence[Call], recomputed: bool) -> float:
        frames = sum(call.cached * call.batch for call in graph(calls))
        return 0 if recomputed else load.keys_and_values(frames)  # recomputed, all share the cache

    saved = most(lambda load, calls, recomputed: load.saved(graph(calls), recomputed))
    running = most(lambda load, calls, _: max(load.working(c.frames * c.batch) for c in calls), max)
    return [
        Item("KV cache", most(lambda load, calls, _: load.caches(calls))),
        Item("pasts kept by each block's graph", most(pasts)),
        Item("activations for the backward pass", saved, False),
        Item("one layer at work", running, False),
    ]


def loading(loads: Mapping[str, Load]) -> list[Item]:
    """Host memory while networks are loaded: all of them, in float32."""
    return [Item(f"{role}, as it is read", FULL * load.parameters) for role, load in loads.items()]


def of_rollout(load: Load, frames: int, cached: int, guided: bool) -> list[Item]:
    """Memory of generating clips, without gradient.

    Args:
        frames: per forward pass: a block, or the clip.
        cached: frames in the KV cache; 0: no cache.
        guided: with an unconditional branch (CFG), with a cache as many clips again in each pass.
    """
    items = [Item("weights", load.frozen)]
    if cached:
        load = replace(load, batch=(1 + guided) * load.batch)
        items.append(Item("KV cache", load.keys_and_values(cached, load.text)))
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
    """Log the memory needed, and refuse what cannot fit.

    Args:
        items: of one process.
        enforce: ``launch.check_memory``; false only logs.
        processes: that need as much of the same memory at the same time.

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
            " sample.batch, pairs.batch), set launch.gradient_checkpointing=true, or full, split a"
            " fit over more devices (launch.strategy=deepspeed, launch.zero_stage=3), or use larger"
            " ones; launch.check_memory=false tries it all the same"
        )
    log.info("memory (~ estimated):\n%s", table)


def _free(device: torch.device) -> tuple[int, str]:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], torch.cuda.get_device_name(device)
    available, allowed = psutil.virtual_memory().available, cgroup.free_memory()
    if allowed is not None and allowed < available:
        return allowed, "this machine within the limit of this job or container (cgroup)"
    return available, "this machine"
