"""Memory limits of a job or container (cgroups), which the host's figures do not show."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_NAMES = {
    2: ("memory.max", "memory.current"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}
_CACHED = {2: ("inactive_file", "active_file"), 1: ("total_inactive_file", "total_active_file")}


def free_memory(root: Path = ROOT, membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes left under this process's limits, page cache excluded; None without a limit.

    Parent cgroups may limit the process too; all visible ones are read. Kernel:
    Documentation/admin-guide/cgroup-v2.rst ("memory.max"), cgroup-v1/memory.rst.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            left += _left(root, path, 2)
        elif "memory" in controllers.split(","):
            left += _left(root / "memory", path, 1)
    return min(left, default=None)


def _left(root: Path, path: str, version: int) -> list[int]:
    own = root / path.strip("/")
    groups = [group for group in (own, *own.parents) if group == root or root in group.parents]
    return [found for group in groups if (found := _of(group, version)) is not None]


def _of(group: Path, version: int) -> int | None:
    limit, used = _NAMES[version]
    try:
        allowed = (group / limit).read_text(encoding="utf-8").strip()
        if allowed == "max" or int(allowed) >= 2**60:  # cgroup v1 writes "none" as a huge number
            return None
        lines = (group / "memory.stat").read_text(encoding="utf-8").splitlines()
        stat = dict(line.split() for line in lines)
        cached = sum(int(stat.get(name, 0)) for name in _CACHED[version])
        return max(0, int(allowed) - int((group / used).read_text(encoding="utf-8")) + cached)
    except (OSError, ValueError):
        return None
