"""Timing a training step asks no MPI: where mpi4py cannot start it, asking ends the process."""

import pytest
from lightning.fabric.plugins.environments import MPIEnvironment
from lightning.pytorch.trainer.connectors import accelerator_connector

from experiments.__main__ import main
from tests.test_bench import SMALL


def test_a_step_is_timed(monkeypatch, tmp_path):
    class Broken(MPIEnvironment):
        @staticmethod
        def detect():
            pytest.fail("Lightning asked MPI")

    monkeypatch.setattr(accelerator_connector, "MPIEnvironment", Broken)
    words = ["--device", "cpu", "--warmup", "0", "--repeats", "1", "--one-process"]
    out = ["--rows", "train/stage2_causal_ode", "--out", str(tmp_path / "rows.json")]
    assert main(["bench", "train", *SMALL, *words, *out]) == 0
