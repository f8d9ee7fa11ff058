"""Cores and GPUs of this machine, and whether a run uses a GPU; without torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TIMEOUT_S = 60.0  # of nvidia-smi: without its daemon it takes seconds per GPU
_DRIVER = Path("/proc/driver/nvidia/gpus")


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them.

    That variable has precedence; otherwise all GPUs that the driver lists.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        ids = [word.strip() for word in chosen.split(",") if word.strip()]
        return ids[: ids.index("-1")] if "-1" in ids else ids  # CUDA ignores what follows a -1
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(
            ["nvidia-smi", "-L"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
        )
        return re.findall(r"^GPU (\d+):", listed.stdout, re.M)
    return [str(number) for number in range(len(list(_DRIVER.glob("*"))))]


def wants_gpu(recipe: Mapping[str, Any]) -> bool:
    """Whether a run uses a GPU where there is one."""
    return recipe.get("launch", {}).get("accelerator", "auto") != "cpu"
