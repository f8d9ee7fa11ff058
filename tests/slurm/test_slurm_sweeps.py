"""Sweeps on a real Slurm: order, preemption, requeues, scancel, runners that die."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from cluster import Cluster, missing
from program import sweep
from test_runner import Heard, results

from experiments.runs.folder import RunFolder
from sweeps.executors.local import LocalPool
from sweeps.executors.slurm import SlurmQueue
from sweeps.run.runner import Interrupted, Runner

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
PROGRAM = Path(__file__).parent / "program.py"


@pytest.fixture(scope="module")
def expected(cluster, tmp_path_factory):
    """What the sweep gives on this machine, without Slurm."""
    runs = tmp_path_factory.mktemp("local")
    Runner(sweep(), runs, LocalPool(2, "fixture_verbs"), Heard()).run()
    return results(runs)


def go(runs, heard=None, retry=False, **settings):
    runs.mkdir(exist_ok=True)
    heard = heard or Heard()
    outcome = Runner(sweep(**settings), runs, SlurmQueue("fixture_verbs"), heard, retry).run()
    return outcome, heard


def start(runs, step_s=0.0, *words):
    """The runner as a process; its last line says what happened."""
    command = [sys.executable, str(PROGRAM), str(step_s), "--cluster", "slurm", *words]
    return subprocess.Popen([*command, "--runs", str(runs)], stdout=subprocess.PIPE, text=True)


def job(runs, recipe):
    """(job id, folder) of a recipe's only run, once it has been submitted."""
    wait(lambda: any(runs.glob(f"{recipe}-*/slurm/job.json")))
    (file,) = runs.glob(f"{recipe}-*/slurm/job.json")
    return json.loads(file.read_text())["job"], file.parent.parent


def jobs(cluster, runs):
    """State by job id of all that were ever submitted for these runs."""
    lines = cluster.call("squeue", "-h", "-t", "all", "-o", "%i|%T|%k").splitlines()
    return {line.split("|")[0]: line.split("|")[1] for line in lines if str(runs) in line}


def wait(condition, limit_s=120.0):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def starts(folder):
    return (folder / "log.txt").read_text().count(" starts (process")


def saved(folder):
    return (folder / "checkpoints" / "last.ckpt").exists()


def test_a_sweep_runs_along_its_graph(cluster, tmp_path, expected):
    outcome, heard = go(tmp_path)
    assert len(outcome.executed) == 7 and results(tmp_path) == expected
    wait(lambda: set(jobs(cluster, tmp_path).values()) == {"COMPLETED"})
    _, left = job(tmp_path, "left")
    base, _ = job(tmp_path, "base")
    assert json.loads((left / "slurm" / "job.json").read_text())["after"] == [base]
    queued = [line[1] for line in heard.lines if line[0] == "say" and "queued" in line[1]]
    assert len(queued) == 7 and any("after base-" in text for text in queued)
    assert go(tmp_path)[0].found_done == list(sweep().runs), "a second call finds everything done"


def test_without_its_runner_the_sweep_goes_on_and_nothing_is_submitted_twice(
    cluster, tmp_path, expected
):
    first = start(tmp_path, 0.8)
    job(tmp_path, "join")  # far into the graph: what it needs is in the queue before it
    first.kill()
    first.wait()
    assert len(jobs(cluster, tmp_path)) >= 4
    last = start(tmp_path, 0.8)
    last.communicate(timeout=90)
    assert last.returncode == 0 and len(results(tmp_path)) == 7
    # A job whose program was not stored yet when the runner died cannot start; it was withdrawn.
    kept = [state for state in jobs(cluster, tmp_path).values() if state != "CANCELLED"]
    assert len(kept) == 7
    assert all(starts(path.parent) == 1 for path in tmp_path.glob("*/done.json"))


def test_ctrl_c_leaves_the_jobs_and_says_so(cluster, tmp_path):
    def stop(line):
        if line[0] == "started":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        go(tmp_path, Heard(stop), step_s=0.2)
    text = "\n".join(stopped.value.messages)
    assert "jobs stay with Slurm" in text and "scancel" in text
    wait(lambda: jobs(cluster, tmp_path) and set(jobs(cluster, tmp_path).values()) == {"COMPLETED"})
    assert len(go(tmp_path, step_s=0.2)[0].found_done) == 7


def test_a_preempted_run_saves_is_queued_again_and_goes_on(cluster, tmp_path):
    runner = start(tmp_path, 1.0)
    id, base = job(tmp_path, "base")
    wait(lambda: saved(base))
    urgent = ["sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2"]
    cluster.call(*urgent)
    wait(lambda: starts(base) == 2)
    step = int((base / "checkpoints" / "last.ckpt").read_text().split()[0])
    assert step >= 1, "it went on from its checkpoint"
    words = (base / "slurm" / f"{id}_0_log.err").read_text()
    assert "Calling checkpoint method" in words and words.count("Requeued job") == 1
    assert "interrupted: saved" in (base / "log.txt").read_text()
    assert "7 runs executed" in runner.communicate(timeout=90)[0]
    assert starts(base) == 2 and len(jobs(cluster, tmp_path)) == 7


def test_a_requeue_by_the_operator_goes_on_too(cluster, tmp_path):
    runner = start(tmp_path, 0.5)
    id, base = job(tmp_path, "base")
    wait(lambda: saved(base))
    cluster.call("scontrol", "requeue", id)
    assert "7 runs executed" in runner.communicate(timeout=90)[0]
    assert starts(base) == 2 and len(jobs(cluster, tmp_path)) == 7


def test_a_cancelled_run_is_shown_as_such_and_is_run_by_the_next_call(cluster, tmp_path):
    def cancel(line):
        if line[0] == "started" and line[1].startswith("right"):
            id, folder = job(tmp_path, "right")
            wait(lambda: saved(folder))
            cluster.call("scancel", id)

    outcome, heard = go(tmp_path, Heard(cancel), step_s=0.3)
    right = next(name for name in outcome.failed)
    assert right.startswith("right") and heard.of("cancelled") == [right]
    assert [name.split("-")[0] for name in outcome.blocked] == ["judge", "join", "judge"]
    assert RunFolder(tmp_path / right).state() == "interrupted"
    again = go(tmp_path, step_s=0.3)[0]
    assert not again.failed and len(again.executed) == 4


def test_a_failure_takes_its_dependants_out_of_the_queue(cluster, tmp_path):
    outcome, heard = go(tmp_path, act="fail")
    right = outcome.failed[0]
    assert right.startswith("right") and len(outcome.blocked) == 3 and len(outcome.executed) == 3
    assert "NaN at step 1" in next(line[2] for line in heard.lines if line[0] == "failed")
    assert "PENDING" not in jobs(cluster, tmp_path).values()
    (tmp_path / "mended").touch()
    again = go(tmp_path, retry=True, act="fail")[0]
    assert not again.failed and len(again.executed) == 4


def test_a_run_whose_process_is_killed_is_continued_in_a_new_job(cluster, tmp_path):
    outcome, heard = go(tmp_path, act="crash_once")
    right = heard.of("lost")
    assert len(right) == 1 and right[0].startswith("right") and not outcome.failed
    assert heard.of("started").count(right[0]) == 2


def test_what_slurm_refuses_fails_with_what_was_asked_for(cluster, tmp_path):
    wrong = {"launch.slurm": {"default": {"partition": "hihg"}}}
    outcome, heard = go(tmp_path, **wrong)
    text = next(line[2] for line in heard.lines if line[0] == "failed")
    assert len(outcome.blocked) == 6 and "invalid partition" in text and "hihg" in text


def test_memory_is_what_the_scale_says(cluster, tmp_path):
    """Four jobs fit onto a node's cores, and one of these into its memory."""
    go(tmp_path, **{"launch.slurm": {"default": {"partition": "low", "mem_gb": 40}}})
    lines = cluster.call("squeue", "-h", "-t", "all", "-o", "%m|%k").splitlines()
    assert {line.split("|")[0] for line in lines if str(tmp_path) in line} == {"40G"}
    (tmp_path / "again").mkdir()
    much = {"launch.slurm": {"default": {"partition": "low", "mem_gb": 900}}}
    outcome, heard = go(tmp_path / "again", **much)
    text = next(line[2] for line in heard.lines if line[0] == "failed")
    assert len(outcome.failed) == 1 and "'mem': '921600M'" in text and "emory" in text


def test_a_path_may_have_spaces(cluster, tmp_path, expected):
    runs = tmp_path / "my 'runs' [v1] – größer"
    assert len(go(runs)[0].executed) == 7 and results(runs) == expected


def test_a_full_queue_is_waited_for(tmp_path, monkeypatch, expected):
    with Cluster(most_jobs=3) as small:
        for name, value in small.environment.items():
            monkeypatch.setenv(name, value)
        runner = start(tmp_path)
        said = []
        for line in runner.stdout:
            said.append(line)
            if "no room for more jobs" in line:
                small.allow(most_jobs=100)
        # A submission that was withdrawn may have been accepted: its run is then found done.
        executed, found = map(int, re.findall(r"(\d+) (?:runs executed|done before)", said[-1]))
        assert runner.wait() == 0 and executed + found == 7 and executed
        assert len([line for line in said if "no room" in line]) == 1
        assert not [line for line in said if "failed" in line]
    assert results(tmp_path) == expected


def test_a_job_whose_runner_died_before_it_stored_the_program_is_submitted_again(
    cluster, tmp_path, expected
):
    base = next(iter(sweep().runs))
    (tmp_path / base / "slurm").mkdir(parents=True)
    comment = f"--comment={tmp_path / base}"
    cluster.call("sbatch", "--begin=now+1hour", comment, "-o", "/dev/null", "--wrap", "true")
    assert len(go(tmp_path)[0].executed) == 7 and results(tmp_path) == expected
    states = sorted(jobs(cluster, tmp_path).values())
    assert states[0] == "CANCELLED" and len(states) == 8


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_nothing_of_a_cluster_outlives_it():
    with pytest.raises(RuntimeError), Cluster() as second:
        folder = str(second.folder)
        raise RuntimeError("a test failed")
    for process in psutil.process_iter():
        try:
            assert folder not in " ".join(process.cmdline())
        except psutil.Error:
            continue
    assert not Path(folder).exists()
