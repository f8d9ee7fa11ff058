"""Pairs by several processes on two nodes of a real Slurm: the same tars, whatever is killed."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from minimal_runs import SETTINGS, copied
from test_runner import Heard
from test_slurm_sweeps import jobs, wait

from experiments.runs.folder import RunFolder
from experiments.runs.lock import Lease
from experiments.runs.recipe import parse_settings
from sweeps.executors.slurm import SlurmQueue
from sweeps.plan.graph import load_sweep
from sweeps.run.runner import Runner

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
HERE = Path(__file__).parent
OWN = ["stages.pairs.count=24", "stages.pairs.batch=2"]
TARS = 12
SCRIPT = """#!/bin/sh
#SBATCH --nodes={nodes} --ntasks-per-node={devices} --no-kill --output={runs}/sbatch.txt
export OMP_NUM_THREADS=1 HOLD={runs}/hold
srun --kill-on-bad-exit=0 --no-kill --wait=0 {python} {program} {run}
test -f {run}/done.json
"""


def sweep(runs, nodes, devices=1):
    launch = [f"launch.nodes={nodes}", f"launch.devices={devices}"]
    slurm = {"launch.slurm": {"default": {"partition": "low", "mem_gb": 2, "timeout_min": 10}}}
    settings = parse_settings([*SETTINGS, *OWN, *launch]) | slurm
    return load_sweep(HERE / "shards.yaml", "tiny", settings=settings, runs=runs)


def begun(runs, nodes, devices) -> RunFolder:
    (pairs,) = (run for run in sweep(runs, nodes, devices).runs.values() if run.verb == "pairs")
    return RunFolder.create(pairs, runs)


def tars(folder) -> dict[str, bytes]:
    """The set, without claims of workers that were killed."""
    files = (path for path in (folder.path / "shards").iterdir() if path.suffix != ".claim")
    return {path.name: path.read_bytes() for path in files}


def count(folder) -> int:
    return len(list((folder.path / "shards").glob("*.tar")))


def workers(folder, word="shards.py") -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        ours = any(each.startswith(str(folder.path)) for each in words)
        if ours and any(word in each for each in words) and "srun" not in words[0]:
            found.append(process)
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What one process makes."""
    folder = begun(copied(tmp_path_factory.mktemp("one")), 1, 1)
    path = f"{HERE.parent.parent}{os.pathsep}{HERE.parent / 'fixtures'}"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, str(HERE / "shards.py"), str(folder.path)]
    subprocess.run(program, env=environment, check=True)
    assert count(folder) == TARS
    return tars(folder)


def submit(cluster, folder, nodes, devices):
    script = folder.path.parent / "script.sh"
    places = {"runs": folder.path.parent, "run": folder.path, "program": HERE / "shards.py"}
    script.write_text(SCRIPT.format(nodes=nodes, devices=devices, python=sys.executable, **places))
    assert "Submitted batch job" in cluster.call("sbatch", str(script))


def test_three_of_four_are_killed(cluster, tmp_path, expected):
    """The leader among them: each is lost with its shard alone, and the last one ends the run."""
    folder = begun(copied(tmp_path), 2, 2)
    (folder.path.parent / "hold").touch()
    submit(cluster, folder, 2, 2)
    wait(lambda: count(folder) == 4, 240)
    kept = {path: path.stat().st_mtime_ns for path in (folder.path / "shards").glob("*.tar")}
    leader, at_work = Lease(folder.path).holder().process, workers(folder)
    last = next(process for process in at_work if process.pid != leader)
    for process in at_work:
        if process.pid != last.pid:
            process.kill()
    (folder.path.parent / "hold").unlink()
    wait(lambda: folder.done, 240)
    assert tars(folder) == expected
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "none was made again"


def run(runs, monkeypatch, heard):
    monkeypatch.setenv("HOLD", str(runs / "hold"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (runs / "hold").touch()
    return Runner(sweep(runs, 2), runs, SlurmQueue("small_shards"), heard).run()


def disturbed(folder, runs, disturb):
    """A listener of the runner's that waits for a tar of each node, and then disturbs the job."""

    def hear(line):
        if line[0] == "started" and (runs / "hold").exists():
            wait(lambda: count(folder) == 2, 240)
            disturb()
            (runs / "hold").unlink()

    return Heard(hear)


def test_a_node_of_a_job_is_lost(cluster, tmp_path, expected, monkeypatch):
    """The job goes on, and ends well: what waits for it in the queue is not withdrawn."""
    runs = copied(tmp_path)
    folder = begun(runs, 2, 1)

    def lose():
        others = [p for p in workers(folder, "_submit") if p.environ()["SLURM_PROCID"] == "1"]
        assert cluster.call("squeue", "-h", "-t", "R", "-o", "%D").split() == ["2"] and others
        for process in others:
            process.kill()

    outcome = run(runs, monkeypatch, disturbed(folder, runs, lose))
    assert not outcome.failed and tars(folder) == expected
    wait(lambda: list(jobs(cluster, runs).values()) == ["COMPLETED"])


def test_a_job_is_preempted_and_goes_on(cluster, tmp_path, expected, monkeypatch):
    runs = copied(tmp_path)
    folder = begun(runs, 2, 1)
    urgent = ["sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"]

    def preempt():
        cluster.call(*urgent)
        wait(lambda: not workers(folder, "_submit"), 60)

    outcome = run(runs, monkeypatch, disturbed(folder, runs, preempt))
    assert not outcome.failed and tars(folder) == expected
    assert (folder.path / "log.txt").read_text().count(" starts (process") == 2
    wait(lambda: list(jobs(cluster, runs).values()) == ["COMPLETED"])
