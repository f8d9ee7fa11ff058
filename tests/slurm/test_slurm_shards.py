"""Pairs by several processes on two nodes of a real Slurm: the same tars, whatever is killed."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from minimal_runs import SETTINGS, copied
from test_slurm_sweeps import jobs, starts, wait

from experiments.runs.folder import RunFolder
from experiments.runs.lock import Lease
from experiments.runs.recipe import parse_settings, resolve
from experiments.runs.yaml_reader import dump_yaml
from sweeps.executors import Job
from sweeps.executors.submission import submit_once

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


def begun(runs, nodes, devices) -> RunFolder:
    launch = [f"launch.nodes={nodes}", f"launch.devices={devices}"]
    pairs = resolve("causal_pairs", "tiny", parse_settings([*SETTINGS, *OWN, *launch]))
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


def job_of_two_nodes(folder: Path) -> str:
    """The id of a sweep's job for a run of two nodes, when both are at work; they are held."""
    recipe = {"recipe": "pairs", "verb": "pairs", "seed": 0, "needs": {}}
    recipe["launch"] = {"nodes": 2, "accelerator": "cpu"}
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump_yaml(recipe))
    (folder / "hold").touch()
    asks = {"partition": "low", "mem_gb": 1, "timeout_min": 5, "signal_s": 30}
    id, _ = submit_once(Job("run", "pairs", recipe, folder, asks), [], "fixture_verbs")
    wait(lambda: {path.name for path in folder.glob("rank.*")} == {"rank.0", "rank.1"})
    assert cluster_nodes(folder) == {"node1", "node2"}
    return id


def cluster_nodes(folder) -> set[str]:
    return {each.environ()["SLURMD_NODENAME"] for each in workers(RunFolder(folder), "_submit")}


@pytest.mark.parametrize("rank", ["1", "0"], ids=["other", "leader"])
def test_a_job_goes_on_without_a_lost_node(cluster, tmp_path, rank):
    """And ends well, so that what waits for it in the queue is not withdrawn."""
    folder = tmp_path / "pairs"
    job_of_two_nodes(folder)
    for process in workers(RunFolder(folder), "_submit"):
        if process.environ()["SLURM_PROCID"] == rank:
            process.kill()
    (folder / "hold").unlink()
    wait(lambda: RunFolder(folder).done)
    wait(lambda: list(jobs(cluster, folder).values()) == ["COMPLETED"])


def test_a_preempted_job_is_queued_again_and_both_nodes_go_on(cluster, tmp_path):
    folder = tmp_path / "pairs"
    id = job_of_two_nodes(folder)
    urgent = ["sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"]
    cluster.call(*urgent)
    wait(lambda: starts(folder) == 2)
    (folder / "hold").unlink()
    wait(lambda: RunFolder(folder).done)
    wait(lambda: jobs(cluster, folder) == {id: "COMPLETED"})
    assert "interrupted" in (folder / "log.rank1.txt").read_text()
