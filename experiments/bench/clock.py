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

MOST_WARM_UP = 8


@dataclass(frozen=True)
class Protocol:
    """Number of warm-up and of timed repetitions."""

    warmup: int = 1
    repeats: int = 5


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition, and the peak memory [bytes] over all of them.

    Args:
        seconds: of each.
        peak_memory_bytes: over all.
        expected_s: where chance decides what a repetition does, the expectation over that.
    """

    seconds: tuple[float, ...]
    peak_memory_bytes: int
    expected_s: float | None = None

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def typical(self) -> float:
        """The expectation where repetitions differ by chance, else the median."""
        return self.median if self.expected_s is None else self.expected_s

    def as_dict(self) -> dict[str, Any]:
        """For the JSON: all values, median, 10th and 90th percentile, the expectation if any."""
        low, high = np.quantile(self.seconds, [0.1, 0.9])
        found = {key: value for key, value in asdict(self).items() if value is not None}
        return found | {"median_s": self.median, "p10_s": float(low), "p90_s": float(high)}


def now(device: torch.device) -> float:
    """Wall-clock seconds after synchronising the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(
    action: Callable[[], Any],
    device: torch.device,
    protocol: Protocol,
    first_times: Callable[[], int] = lambda: 0,
) -> tuple[Timing, list[Any]]:
    """Time `action`; also its return value of each repetition.

    Args:
        action: what is timed.
        device: that it runs on.
        protocol: of the measurement.
        first_times: counts what was done for the first time, such as CUDA graphs that were
            captured: warm-up, if there is any, goes on until a repetition adds nothing to it.
    """
    warm_up(action, protocol.warmup, first_times)
    forget_peak(device)
    seconds, returned = [], []
    for _ in range(protocol.repeats):
        start = now(device)
        returned.append(action())
        seconds.append(now(device) - start)
    return Timing(tuple(seconds), peak_memory(device)), returned


def warm_up(action: Callable[[], Any], least: int, first_times: Callable[[], int]) -> int:
    """Repeat an action until it does nothing for the first time; returns how often.

    Args:
        action: to repeat.
        least: repetitions; 0 for none at all.
        first_times: as in `measure`.
    """
    done, counted, settled = 0, first_times(), True
    while done < least or not settled and done < max(least, MOST_WARM_UP):
        action()
        before, counted = counted, first_times()
        done, settled = done + 1, before == counted
    return done


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
