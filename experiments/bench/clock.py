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
    """Number of warm-up and of timed repetitions."""

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
        """For the JSON: all values, median, 10th and 90th percentile."""
        low, high = np.quantile(self.seconds, [0.1, 0.9])
        return asdict(self) | {"median_s": self.median, "p10_s": float(low), "p90_s": float(high)}


def now(device: torch.device) -> float:
    """Wall-clock seconds after synchronising the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(
    action: Callable[[], Any], device: torch.device, protocol: Protocol
) -> tuple[Timing, list[Any]]:
    """Time `action`; also its return value of each repetition."""
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
    """Reset the peak memory statistics where the device supports it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Peak bytes: on a GPU since `forget_peak`, on a CPU of the process since its start."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median and tails of single numbers."""
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return {"median": float(middle), "p10": float(low), "p90": float(high)}
