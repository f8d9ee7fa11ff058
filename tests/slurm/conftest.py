"""A Slurm for all tests in this folder, or the reason why there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing

TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One for each file: after a fault its nodes may be drained. Starts in two seconds."""
    pytest.importorskip("submitit")
    if reason := missing():
        pytest.skip(reason)
    path = f"{TESTS.parent}{os.pathsep}{TESTS / 'fixtures'}"
    with pytest.MonkeyPatch.context() as patch, Cluster() as started:
        for name, value in {**started.environment, "PYTHONPATH": path}.items():
            patch.setenv(name, value)
        yield started


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """One file system and one scheduler that nobody else uses: nothing is late."""
    from sweeps.executors import slurm

    monkeypatch.setattr(slurm, "LOOK_EVERY_S", 0.3)
    monkeypatch.setattr(slurm, "SETTLE_S", 1.0)
    monkeypatch.setattr(slurm, "TRY_AGAIN_S", 1.0)
