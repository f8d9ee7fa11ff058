"""The code and package versions that made a result."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

TIMEOUT_S = 20.0  # of git: of a large tree on a slow disk it takes seconds
PACKAGES = ("torch", "lightning", "deepspeed", "diffusers", "transformers", "webdataset", "numpy")


@cache
def revision() -> str:
    """The git revision of the code, with "+changes" if the tree differs from it."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
        )
        changes = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):  # no git, or a disk that stalls
        return "unknown"
    return head.stdout.strip() + ("+changes" if changes.stdout else "") or "unknown"


@cache
def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": sys.version.split()[0]}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
