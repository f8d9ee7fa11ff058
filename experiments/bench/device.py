"""The measured device: its description, and its peak throughput measured in the same run."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.bench.clock import Protocol, measure
from experiments.bench.count import Work
from experiments.runs import provenance

_PACKAGES = ("torch", "lightning", "diffusers", "transformers", "flash-attn", "numpy")
_QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"


@dataclass(frozen=True)
class Peak:
    """Peak throughput of the device, measured in this run."""

    matmul_flops: float  # operations per second of a large square product
    copy_bytes: float  # bytes per second read and written by a large copy
    dtype: str
    matmul_size: int
    copy_size: int

    def least_seconds(self, work: Work) -> float:
        """The roofline: the larger of compute and memory time at peak throughput."""
        return max(work.operations / self.matmul_flops, work.bytes / self.copy_bytes)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Best of ten of a square matrix product, and of a copy larger than any cache."""
    large = device.type == "cuda"
    size, copied = (8192, 2**30) if large else (1024, 2**26)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.empty(copied, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    protocol = Protocol(warmup=2, repeats=10)
    product, _ = measure(lambda: a @ b, device, protocol)
    copy, _ = measure(lambda: target.copy_(source), device, protocol)
    return Peak(
        matmul_flops=2 * size**3 / min(product.seconds),
        copy_bytes=2 * copied / min(copy.seconds),
        dtype=str(dtype).removeprefix("torch."),
        matmul_size=size,
        copy_size=copied,
    )


def describe(device: torch.device) -> dict[str, Any]:
    """Name, memory, clocks and temperature, as far as available."""
    about: dict[str, Any] = {"type": device.type, "threads": torch.get_num_threads()}
    if device.type != "cuda":
        return about | {"name": _processor(), "clocks": None}
    properties = torch.cuda.get_device_properties(device)
    return about | {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "clocks": _nvidia_smi(),
    }


def versions() -> dict[str, str]:
    """Versions of Python, CUDA and the relevant packages."""
    return provenance.versions(_PACKAGES) | {"cuda": str(torch.version.cuda)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _nvidia_smi() -> dict[str, str] | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    words = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader", "-i", "0"]
    done = subprocess.run(
        words, capture_output=True, encoding="utf-8", errors="replace", timeout=30
    )
    if done.returncode:
        return None
    return dict(zip(_QUERY.split(","), done.stdout.strip().split(", "), strict=False))
