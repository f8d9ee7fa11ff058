"""What the executor makes of Slurm's answers, with Slurm's programs faked."""

import time

import pytest
from test_runner import FIXTURES, LIBRARY

from experiments.runs.folder import RunFolder
from sweeps.executors import slurm
from sweeps.executors.squeue import Listed
from sweeps.plan.graph import load_sweep
from sweeps.run.checks import job_of


@pytest.fixture
def given(tmp_path, monkeypatch):
    """A run in Slurm's hands as job 7, its need done, and the calls that change Slurm's mind."""
    calls = []
    monkeypatch.setattr(slurm, "release", lambda job: calls.append(("release", job)))
    monkeypatch.setattr(slurm, "forget_dependencies", lambda job: calls.append(("let go", job)))
    monkeypatch.setattr(slurm, "ended_as", lambda job: "UNKNOWN")
    monkeypatch.setattr(slurm, "SETTLE_S", 0.05)
    runs = load_sweep(FIXTURES / "diamond.yaml", "tiny", [0], LIBRARY, {"steps": 4}).runs
    folders = {run.recipe["recipe"]: RunFolder.create(run, tmp_path) for run in runs.values()}
    folders["base"].mark_done()
    run = next(run for run in runs.values() if run.recipe["recipe"] == "left")
    return slurm._Given(job_of(run, tmp_path), "7"), RunFolder(tmp_path / run.name), calls


def look(given, state=None, reason="None"):
    """Kinds of the events of one look, and of a second one when things have settled."""
    entry = state and Listed("7", state, reason, given.job.folder)
    first = [event.kind for event in slurm._look(given, entry or None)]
    time.sleep(0.06)
    return first, [event.kind for event in slurm._look(given, entry or None)]


@pytest.mark.parametrize(
    ("state", "reason", "first", "then"),
    [
        ("RUNNING", "None", ["started"], []),
        ("PENDING", "Priority", [], []),
        ("COMPLETED", "None", [], ["died"]),
        ("FAILED", "NonZeroExitCode", [], ["died"]),
        ("TIMEOUT", "TimeLimit", [], ["died"]),
        ("NODE_FAIL", "None", [], ["lost"]),
        ("PREEMPTED", "None", [], ["lost"]),
        ("CANCELLED", "None", ["cancelled"], ["cancelled"]),
        ("CANCELLED", "DependencyNeverSatisfied", ["withdrawn"], ["withdrawn"]),
        (None, "", [], ["lost"]),
    ],
)
def test_how_a_job_ends_decides_what_becomes_of_its_run(given, state, reason, first, then):
    assert look(given[0], state, reason) == (first, then)


def test_a_job_that_ran_and_is_forgotten_has_died(given):
    assert look(given[0], "RUNNING")[0] == ["started"]
    assert look(given[0])[1] == ["died"]


def test_its_folder_has_the_last_word(given):
    one, folder, _ = given
    folder.mark_failed("ValueError: NaN")
    assert look(one, "CANCELLED")[0] == ["failed"]
    folder.mark_done()
    assert look(one, "RUNNING")[0] == ["done"]


def test_a_job_that_nodes_could_not_launch_is_released_but_not_for_ever(given):
    one, _, calls = given
    for _ in range(3):
        look(one, "PENDING", "launch failed requeued held")
    assert calls == [("release", "7")] * slurm.RELEASES


def test_nothing_waits_for_a_job_whose_run_is_done(given):
    one, _, calls = given
    look(one, "PENDING", "Dependency")
    assert calls == [("let go", "7")]


def test_a_run_waits_while_its_need_is_not_done(given, tmp_path):
    one, folder, calls = given
    (folder.needs["student"].path / "done.json").unlink()
    look(one, "PENDING", "Dependency")
    assert not calls
