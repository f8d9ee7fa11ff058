"""What a run costs, kept in its record.json: times, memory, devices, versions."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

from experiments.launch.ranks.topology import wanted
from experiments.runs.errors import told
from experiments.runs.folder import RunFolder
from experiments.runs.provenance import revision, versions
from experiments.runs.recipe import config_hash

HEARTBEAT_S = 5.0
log = logging.getLogger(__name__)


@contextmanager
def recorded(folder: RunFolder) -> Iterator[None]:
    """Keeps record.json; times add up over interruptions, even if the process is killed."""
    before = folder.read_record()
    launch = folder.recipe.get("launch", {})
    devices = prod(wanted(folder.recipe))
    started = time.time()
    clock = time.perf_counter()
    _reset_peak_memory()
    folder.record(
        {
            "started": before.get("started", started),
            "scale": launch.get("scale"),
            "recipe": folder.recipe["recipe"],
            "verb": folder.recipe["verb"],
            "code": revision(),
            "config_hash": config_hash(folder.recipe),
            "versions": versions(),
            "devices": devices,
        }
    )

    def update() -> None:
        wall = before.get("wall_s", 0.0) + time.perf_counter() - clock
        peak = max(before.get("peak_memory_bytes", 0), _peak_memory())
        times = {"wall_s": wall, "device_s": wall * devices, "ended": time.time()}
        folder.record(times | {"peak_memory_bytes": peak, "progress": folder.reached})

    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            with _only_warning():
                update()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()

    def finish() -> None:
        ended.set()
        thread.join()
        update()
        folder.record({"device": _device(), "bytes_written": folder.size()})

    try:
        yield
    except BaseException:
        with _only_warning():  # why the run ended is what matters
            finish()
        raise
    finish()


@contextmanager
def _only_warning() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.warning("the record is incomplete: %s", told(error))


def _reset_peak_memory() -> None:
    """Reset the peak of a worker's earlier runs (Linux only)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        log.debug("peak memory cannot be reset on this system")


def _peak_memory() -> int:
    """Bytes: the GPU's peak where one is used, else the process's."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    return "cpu"
