"""Limits of jobs and containers, read from trees like the kernel's."""

import pytest

from experiments.launch.memory import count as memory
from experiments.launch.memory.cgroup import free_memory
from experiments.launch.memory.count import GIB, Item, require


def group(path, version=2, limit="max", used=0, **stat):
    """One directory of the kernel's."""
    limits, usage = {
        2: ("memory.max", "memory.current"),
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    }[version]
    path.mkdir(parents=True, exist_ok=True)
    (path / limits).write_text(f"{limit}\n")
    (path / usage).write_text(f"{used}\n")
    (path / "memory.stat").write_text("".join(f"{k} {v}\n" for k, v in stat.items()))


def member(tmp_path, *lines):
    file = tmp_path / "cgroup"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_the_tightest_group_above_a_process_decides(tmp_path):
    root = tmp_path / "fs"
    group(root / "slurm" / "job_7" / "step_0", limit="max", used=90)
    group(root / "slurm" / "job_7", limit=1000, used=400, inactive_file=50, active_file=20, anon=1)
    group(root / "slurm", limit=5000, used=100)
    inside = member(tmp_path, "0::/slurm/job_7/step_0")
    assert free_memory(root, inside) == 1000 - 400 + 70


def test_a_container_sees_its_own_group_as_the_root(tmp_path):
    root = tmp_path / "fs"
    group(root, limit=300, used=100)
    assert free_memory(root, member(tmp_path, "0::/../../outside")) == 200
    assert free_memory(root, member(tmp_path, "0::/")) == 200


def test_version_one(tmp_path):
    root = tmp_path / "fs"
    group(root / "memory" / "docker" / "x", 1, 800, 300, total_inactive_file=100)
    group(root / "memory", 1, 2**63 - 4096, 10**12)
    lines = "3:cpu,cpuacct:/docker/x", "2:memory:/docker/x", "0::/"
    assert free_memory(root, member(tmp_path, *lines)) == 600


def test_no_limit_and_no_kernel_say_nothing(tmp_path):
    root = tmp_path / "fs"
    group(root / "user", limit="max", used=5)
    assert free_memory(root, member(tmp_path, "0::/user")) is None
    assert free_memory(root, tmp_path / "none") is None
    group(root / "full", limit=10, used=50)
    assert free_memory(root, member(tmp_path, "0::/full")) == 0


def test_what_does_not_fit_into_the_limit_is_refused(monkeypatch):
    import torch

    monkeypatch.setattr(memory.cgroup, "free_memory", lambda: GIB // 2)
    with pytest.raises(ValueError, match="0.50 GiB are free on this machine within the limit"):
        require([Item("weights", GIB)], torch.device("cpu"), enforce=True)
