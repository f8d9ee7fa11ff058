"""Where a run computes: the ``launch`` section of a recipe, which never changes its meaning."""

from dataclasses import dataclass
from typing import Any

import torch

from experiments.bind import bind


@dataclass(frozen=True)
class Launch:
    """How a run is executed.

    Args:
        scale: the scale it was planned at (a label).
        threads: torch's threads per process; 0 leaves torch's choice. One thread is what makes a
            CPU run bit-identical wherever it is executed.
        accelerator: Lightning's: ``auto``, ``cpu``, ``gpu``.
        devices: how many of them.
        strategy: Lightning's: ``auto``, ``ddp``.
        workers: of the data loader.
        log_every: steps between entries in TensorBoard.
        panel_every: steps between video panels in TensorBoard; 0 for none.
        checkpoint_every_s: seconds between checkpoints.
    """

    scale: str = ""
    threads: int = 0
    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    workers: int = 0
    log_every: int = 50
    panel_every: int = 0
    checkpoint_every_s: float = 60.0


def launch_of(recipe: dict[str, Any]) -> Launch:
    """The recipe's launch settings, checked."""
    return Launch(**bind(Launch, recipe.get("launch", {}), section="launch"))


def prepare(recipe: dict[str, Any]) -> torch.device:
    """Set threads and seed for this run; returns the device that inference verbs use."""
    launch = launch_of(recipe)
    if launch.threads:
        torch.set_num_threads(launch.threads)
    torch.manual_seed(recipe["seed"])
    gpu = launch.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")
