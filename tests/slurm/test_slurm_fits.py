"""Real fits on a real Slurm: one run of DeepSpeed on two nodes, preempted; an sbatch script."""

import hashlib
import subprocess
import sys
import time

import pytest
from faults import HERE, PATH
from test_slurm_sweeps import job, starts, wait

from experiments.runs.folder import RunFolder
from sweeps.executors.local import LocalPool
from sweeps.plan.graph import load_sweep
from sweeps.run.display import Lines
from sweeps.run.runner import Runner

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
SWEEP = HERE / "two_nodes.yaml"
SCRIPT = """#!/bin/sh
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=2 --output={runs}/sbatch.txt
export PYTHONPATH={path} OMP_NUM_THREADS=1
srun --kill-on-bad-exit=1 {python} -m experiments fit {run}
"""


@pytest.fixture(autouse=True)
def _whole(monkeypatch):
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("PYTHONPATH", PATH)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def student(run):
    return hashlib.sha256(
        (run / "student" / "diffusion_pytorch_model.safetensors").read_bytes()
    ).hexdigest()


@pytest.fixture(scope="module")
def expected(cluster, tmp_path_factory):
    """The same run in two processes of this machine, and what it needs."""
    pytest.importorskip("deepspeed")
    runs = tmp_path_factory.mktemp("local")
    here = {"launch.nodes": 1, "launch.devices": 2}
    sweep = load_sweep(str(SWEEP), "switching", [0], settings=here)
    Runner(sweep, runs, LocalPool(2, "experiments.verbs"), Lines()).run()
    (base,) = runs.glob("base-*")
    return base


def test_a_fit_on_two_nodes_is_preempted_saves_together_and_goes_on(cluster, tmp_path, expected):
    words = [str(HERE / "fits.py"), str(SWEEP), "switching", "--cluster", "slurm"]
    runner = subprocess.Popen([sys.executable, *words, "--runs", str(tmp_path)])
    id, base = job(tmp_path, "base")
    wait(lambda: (base / "checkpoints" / "last.ckpt").exists(), 120)
    nodes = cluster.call("squeue", "-h", "-j", id, "-o", "%D").strip()
    assert nodes == "2"
    urgent = ["sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"]
    cluster.call(*urgent)
    begin = time.monotonic()
    wait(lambda: starts(base) >= 2, 120)
    print(f"preempted and at work again after {time.monotonic() - begin:.1f} s")
    assert runner.wait(timeout=240) == 0
    said = (base / "log.txt").read_text()
    assert "interrupted: saved" in said and RunFolder(base).done
    assert student(base) == student(expected)


def test_an_sbatch_script_with_srun(cluster, tmp_path, expected):
    """As docs/clusters.md says: srun starts one process a node, which find each other: one run."""
    for need in expected.parent.iterdir():
        if need.name != expected.name:
            (tmp_path / need.name).symlink_to(need)
    base = tmp_path / expected.name
    (run,) = (
        run for run in load_sweep(str(SWEEP), "switching").runs.values() if "fit" in run.recipe
    )
    RunFolder.create(run, tmp_path)
    script = tmp_path / "script.sh"
    script.write_text(SCRIPT.format(runs=tmp_path, path=PATH, python=sys.executable, run=base))
    assert "Submitted batch job" in cluster.call("sbatch", str(script))
    wait(lambda: RunFolder(base).done or RunFolder(base).state() == "failed", 180)
    assert RunFolder(base).done, (tmp_path / "sbatch.txt").read_text()
    assert starts(base) == 1 and student(base) == student(expected)
