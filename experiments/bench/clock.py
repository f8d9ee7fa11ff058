"""The protocol of a measurement: warm-up, repetitions with a synchronised clock, quantiles."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Protocol:
    """How often something is done before and while it is timed."""

    warmup: int = 1
    repeats: int = 5


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition, and the peak memory [bytes] over all of them."""

    seconds: tuple[float, ...]
    peak_memory_bytes: int

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    def as_dict(self) -> dict[str, Any]:
        """For the JSON: all, median and the tenth and ninetieth percentile."""
        low, high = np.quantile(self.seconds, [0.1, 0.9])
        return asdict(self) | {"median_s": self.median, "p10_s": float(low), "p90_s": float(high)}


def now(device: torch.device) -> float:
    """Seconds of a wall clock, when everything asked of the device has been done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(
    action: Callable[[], Any], device: torch.device, protocol: Protocol
) -> tuple[Timing, list[Any]]:
    """Time `action`; also what it returned each time."""
    for _ in range(protocol.warmup):
        action()
    forget_peak(device)
    seconds, returned = [], []
    for _ in range(protocol.repeats):
        start = now(device)
        returned.append(action())
        seconds.append(now(device) - start)
    return Timing(tuple(seconds), peak_memory(device)), returned


def forget_peak(device: torch.device) -> None:
    """Let the peak memory start anew, where the system can."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's since `forget_peak`; of a CPU run the process's since its start."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median and tails of single numbers."""
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return {"median": float(middle), "p10": float(low), "p90": float(high)}
