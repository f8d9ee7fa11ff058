"""Memory, for people."""

from __future__ import annotations

import resource
import sys

import psutil
import torch


def memory_now(device: torch.device) -> str:
    """What torch holds on a GPU, else what this process holds."""
    if device.type == "cuda":
        return _in_words(torch.cuda.memory_allocated(device), "on the GPU")
    return _in_words(psutil.Process().memory_info().rss)


def peak_memory(device: torch.device) -> str:
    """The most of it so far."""
    if device.type == "cuda":
        return _in_words(torch.cuda.max_memory_allocated(device), "on the GPU")
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return _in_words(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _in_words(count: int, where: str = "") -> str:
    return f"{count / 2**20:.0f} MiB {where}".rstrip()
