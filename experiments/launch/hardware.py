"""The ``launch`` section of a recipe: devices and their use, never a run's result or name."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from experiments.runs.signature import bind
from lightning_modules.networks.wan import attention as kernels
from lightning_modules.ranges import (
    Checkpointing,
    DeviceCount,
    NonNegative,
    NonNegativeInt,
    PositiveInt,
    Seconds,
    WorkerCount,
    ZeroStage,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """How a run is executed.

    Args:
        scale: the scale it was planned at (a label).
        threads: torch's threads per process; 0 leaves torch's choice. With one thread a CPU run is
            bit-identical on any machine.
        accelerator: Lightning's: ``auto``, ``cpu``, ``gpu``.
        nodes: machines; each is started with the same command.
        devices: per node.
        strategy: ``auto``, ``ddp`` or ``deepspeed``.
        zero_stage: what DeepSpeed shards over the devices: 1 the optimizer's state, 2 gradients
            too, 3 weights too.
        timeout_s: seconds that a rank waits for the others before it fails.
        batch_per_device: largest micro-batch of a device; gradients of a larger batch are
            accumulated over micro-batches. 0: no limit.
        gradient_checkpointing: trained networks recompute each layer's activations in the backward
            pass: up to a third more compute, a fraction of the memory. ``true`` keeps
            self-attention's output, which takes most to compute, unless its kernel is ``flex`` or
            ``flash``; ``full`` recomputes it too.
        check_memory: refuse a run that cannot fit (``memory/check.py``); false only warns.
        attention: the self-attention kernel: ``auto``, ``measured`` (on CUDA), ``dense``,
            ``merged``, ``flex``, ``flash`` (``lightning_modules/networks/wan/attention.py``).
        compile: train and generate with compiled layers; CUDA only. Training is not compiled
            under ``zero_stage`` 3, whose hooks gather a layer's weights.
        cuda_graphs: generate by replaying CUDA graphs
            (``lightning_modules/networks/wan/cuda_graphs.py``).
        workers: processes of the data loader; 0 reads in the training process.
        loader_timeout_s: seconds without a batch from them after which the run fails, since a
            disk or a process is stuck; 0: no limit.
        log_every: steps between entries in TensorBoard.
        panel_every: steps between validation samples in TensorBoard; 0 for none.
        checkpoint_every_s: seconds between checkpoints.
    """

    scale: str = ""
    threads: WorkerCount = 0
    accelerator: Literal["auto", "cpu", "gpu", "cuda"] = "auto"
    nodes: DeviceCount = 1
    devices: DeviceCount = 1
    strategy: str = "auto"
    zero_stage: ZeroStage = 2
    timeout_s: Seconds = 1800.0
    batch_per_device: NonNegativeInt = 0
    gradient_checkpointing: Checkpointing = False
    check_memory: bool = True
    attention: kernels.Backend = "auto"
    compile: bool = False
    cuda_graphs: bool = False
    workers: WorkerCount = 0
    loader_timeout_s: Seconds = 600.0
    log_every: PositiveInt = 50
    panel_every: NonNegativeInt = 0
    checkpoint_every_s: NonNegative = 60.0

    @property
    def world(self) -> int:
        """Devices on all nodes together."""
        return self.nodes * self.devices


def launch_of(recipe: dict[str, Any]) -> Launch:
    """The recipe's launch settings, checked."""
    return Launch(**bind(Launch, recipe.get("launch", {}), section="launch"))


def acceleration_of(scale: Mapping[str, Any]) -> Launch:
    """Of a scale's launch settings those of a network without a run: one device, as fast as there.

    Args:
        scale: its tree.
    """
    faster = ("compile", "cuda_graphs")
    return Launch(**{key: scale["launch"][key] for key in faster if key in scale["launch"]})


def micro_batches_of(batch: int, launch: Launch) -> int:
    """The number of micro-batches per step over which every device accumulates gradients.

    The smallest that keeps a micro-batch within ``batch_per_device``. Noise belongs to samples and
    steps count whole batches, so it changes gradients by rounding alone.

    Raises:
        ValueError: the devices do not divide the batch.
    """
    if batch % launch.world:
        raise ValueError(
            f"launch.devices: a batch of {batch} (fit.batch) does not divide over {launch.world}"
            f" devices; use one of {_divisors(batch)}"
        )
    share = batch // launch.world
    limit = launch.batch_per_device or share
    return next(share // size for size in reversed(_divisors(share)) if size <= limit)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def settle(recipe: dict[str, Any]) -> Launch:
    """Set threads and seed for this run."""
    launch = launch_of(recipe)
    if launch.threads:
        torch.set_num_threads(launch.threads)
        # Without it Lightning divides the cores among the processes of a node at their start.
        os.environ["OMP_NUM_THREADS"] = str(launch.threads)
    torch.manual_seed(recipe["seed"])
    return launch


def prepare(recipe: dict[str, Any]) -> torch.device:
    """Set threads, seed and attention for this run; returns the device for inference.

    Raises:
        ValueError: no such device, or an attention kernel that cannot run on it, with the reason.
    """
    launch = settle(recipe)
    gpu = launch.accelerator != "cpu" and torch.cuda.is_available()
    if not gpu and launch.accelerator not in ("auto", "cpu"):
        raise ValueError(
            f"launch.accelerator: {launch.accelerator} is set, but torch"
            f" {torch.__version__} finds no CUDA device here; look at nvidia-smi and"
            " CUDA_VISIBLE_DEVICES, install a torch built for CUDA, or set launch.accelerator=cpu"
        )
    index = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", index) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    kernels.use(launch.attention, device)
    return device


def accelerated(network: nn.Module, launch: Launch, device: torch.device) -> Any:
    """The network for generation, compiled and with CUDA graphs as ``launch`` says."""
    if not (launch.compile or launch.cuda_graphs):
        return network
    if device.type != "cuda" or not hasattr(network, "accelerated"):
        log.warning(
            "launch.compile and launch.cuda_graphs have no effect here: they are for networks that"
            " offer them (Wan) on CUDA, this is a %s on %s", type(network).__name__, device.type
        )  # fmt: skip
        return network
    return network.accelerated(launch.compile, launch.cuda_graphs)
