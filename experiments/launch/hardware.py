"""Where a run computes: the ``launch`` section of a recipe, which never changes its meaning."""

import logging
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from experiments.runs.signature import bind
from lightning_modules.networks.wan import attention as kernels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """How a run is executed.

    Args:
        scale: the scale it was planned at (a label).
        threads: torch's threads per process; 0 leaves torch's choice. One thread is what makes a
            CPU run bit-identical wherever it is executed.
        accelerator: Lightning's: ``auto``, ``cpu``, ``gpu``.
        nodes: machines; every one needs the same command (README, "Clusters").
        devices: how many of them, on every node.
        strategy: ``auto``, ``ddp`` or ``deepspeed``.
        zero_stage: what DeepSpeed splits over the devices: 1 the optimizer's state, 2 gradients
            too, 3 weights too.
        timeout_s: seconds that a process waits for the others before it gives up.
        batch_per_device: most samples that a device takes at once; its share of a larger batch is
            taken in parts whose gradients are accumulated. 0: all at once.
        gradient_checkpointing: trained networks compute each layer again in the backward pass
            instead of keeping what it made: a third more work, a fraction of the memory.
        check_memory: refuse to load what cannot fit (``memory.py``); false only tells.
        attention: the kernel where frames see frames: ``auto``, ``dense``, ``flex``, ``flash``
            (``lightning_modules/networks/wan/attention.py``).
        compile: generate with layers whose pieces between the attention kernels the compiler has
            fused; CUDA only.
        cuda_graphs: generate by replaying recorded calls; CUDA only
            (``lightning_modules/networks/wan/cuda_graphs.py``).
        workers: of the data loader.
        log_every: steps between entries in TensorBoard.
        panel_every: steps between video panels in TensorBoard; 0 for none.
        checkpoint_every_s: seconds between checkpoints.
    """

    scale: str = ""
    threads: int = 0
    accelerator: str = "auto"
    nodes: int = 1
    devices: int = 1
    strategy: str = "auto"
    zero_stage: int = 2
    timeout_s: float = 1800.0
    batch_per_device: int = 0
    gradient_checkpointing: bool = False
    check_memory: bool = True
    attention: kernels.Backend = "auto"
    compile: bool = False
    cuda_graphs: bool = False
    workers: int = 0
    log_every: int = 50
    panel_every: int = 0
    checkpoint_every_s: float = 60.0

    @property
    def world(self) -> int:
        """Devices on all nodes together."""
        return self.nodes * self.devices


def launch_of(recipe: dict[str, Any]) -> Launch:
    """The recipe's launch settings, checked."""
    return Launch(**bind(Launch, recipe.get("launch", {}), section="launch"))


def parts_of(batch: int, launch: Launch) -> int:
    """In how many equal parts, one after the other, every device takes its share of a batch.

    The smallest number that keeps a part within ``batch_per_device``. Noise belongs to samples and
    steps are counted in whole batches, so it changes sums of gradients by rounding alone.

    Raises:
        ValueError: the devices do not divide the batch.
    """
    if launch.world < 1 or batch % launch.world:
        raise ValueError(
            f"launch.devices: {launch.world} devices cannot share a batch of {batch} (fit.batch)"
            f" equally; use one of {_divisors(batch)}"
        )
    share = batch // launch.world
    limit = launch.batch_per_device or share
    return next(share // part for part in reversed(_divisors(share)) if part <= limit)


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]


def settle(recipe: dict[str, Any]) -> Launch:
    """Set threads and seed for this run."""
    launch = launch_of(recipe)
    if launch.threads:
        torch.set_num_threads(launch.threads)
        # Without it Lightning divides the cores among the processes of a node when they meet.
        os.environ["OMP_NUM_THREADS"] = str(launch.threads)
    torch.manual_seed(recipe["seed"])
    return launch


def prepare(recipe: dict[str, Any]) -> torch.device:
    """Set threads, seed and attention for this run; returns the device inference verbs use.

    Raises:
        ValueError: a device that is not there, or an attention kernel that cannot run on it, with
            the reason.
    """
    launch = settle(recipe)
    gpu = launch.accelerator != "cpu" and torch.cuda.is_available()
    if not gpu and launch.accelerator not in ("auto", "cpu"):
        raise ValueError(
            f"launch.accelerator: {launch.accelerator} is wanted, but torch"
            f" {torch.__version__} finds no CUDA device here; look at nvidia-smi and"
            " CUDA_VISIBLE_DEVICES, install a torch built for CUDA, or set launch.accelerator=cpu"
        )
    index = int(os.environ.get("LOCAL_RANK", 0))  # of a rank among those of its node
    device = torch.device("cuda", index) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    kernels.use(launch.attention, device)
    return device


def hurried(network: nn.Module, launch: Launch, device: torch.device) -> Any:
    """The network for generation, as fast as ``launch`` wants it; itself on a CPU."""
    from lightning_modules.networks import Wan

    if device.type != "cuda" or not isinstance(network, Wan):
        if launch.compile or launch.cuda_graphs:
            log.warning(
                "launch.compile and launch.cuda_graphs do nothing here: they hurry a Wan network on"
                " CUDA, this is a %s on %s",
                type(network).__name__,
                device.type,
            )
        return network
    if launch.compile:
        network.compile_blocks()
    if not launch.cuda_graphs:
        return network
    from lightning_modules.networks.wan.cuda_graphs import Replay

    return Replay(network)
