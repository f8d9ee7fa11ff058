"""The state of a run from its folder and Slurm's queue."""

import json
import time
from pathlib import Path

import pytest

from experiments.runs.folder import RunFolder
from experiments.runs.recipe import Library
from sweeps import __main__ as sweeping
from sweeps.plan.graph import load_sweep
from sweeps.run.state import states
from sweeps.run.why import find

FIXTURES = Path(__file__).parent / "fixtures"
LIBRARY = Library(FIXTURES / "recipes", FIXTURES / "scale")


@pytest.fixture
def runs(tmp_path):
    """The folders of the diamond; `runs[recipe]` is the first of its runs."""
    made = {}
    for run in load_sweep(FIXTURES / "diamond.yaml", "tiny", [0], LIBRARY).runs.values():
        made.setdefault(run.recipe["recipe"], RunFolder.create(run, tmp_path))
    return made


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Puts a squeue on the path that lists these jobs of these folders."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")

    def say(**jobs):
        lines = []
        for number, (folder, text) in enumerate(jobs.values()):
            (folder.path / "slurm").mkdir(exist_ok=True)
            (folder.path / "slurm" / "job.json").write_text(json.dumps({"job": f"{number}"}))
            lines.append(f"{number}|{text}|{folder.path}")
        (tmp_path / "bin" / "squeue").write_text(
            "#!/bin/sh\ncat <<.\n" + "\n".join(lines) + "\n.\n"
        )
        (tmp_path / "bin" / "squeue").chmod(0o755)

    return say


def seen(tmp_path):
    sweep = load_sweep(FIXTURES / "diamond.yaml", "tiny", [0], LIBRARY)
    return {each.name: each for each in states(sweep.runs, tmp_path)}


def ask(*words):
    return sweeping.main(["status", str(FIXTURES / "diamond.yaml"), *words], LIBRARY)


def test_a_run_in_work_says_how_far_it_is(tmp_path, runs):
    run = runs["base"]
    run.record({"wall_s": 30.0, "device_s": 60.0, "progress": {"done": 1, "total": 4, "note": "x"}})
    with run.lock():
        state = seen(tmp_path)[run.name]
    assert state.state == "running" and state.left_s == 90.0 and state.device_s == 60.0
    assert (state.done, state.total, state.note) == (1, 4, "x")
    assert seen(tmp_path)[runs["left"].name].left_s == 2, "the scale's hint"


def test_slurm_says_what_waits_and_what_was_taken_away(tmp_path, runs, squeue):
    squeue(
        waits=(runs["base"], "PENDING|Priority"),
        taken=(runs["left"], "CANCELLED|None"),
        never=(runs["right"], "CANCELLED|DependencyNeverSatisfied"),
        ended=(runs["join"], "FAILED|NonZeroExitCode"),
    )
    found = seen(tmp_path)
    said = {name: (found[r.name].state, found[r.name].note) for name, r in runs.items()}
    assert said["base"] == ("queued", "pending (Priority)") and found[runs["base"].name].job == "0"
    assert said["left"] == ("cancelled", "job 1")
    assert said["right"] == ("new", "waits for what did not finish")
    assert said["join"][0] == "new", "Slurm is not asked whether a run has failed"


def test_a_job_of_another_folder_with_the_same_number_is_not_ours(tmp_path, runs, squeue):
    squeue(other=(runs["base"], "PENDING|Priority"))
    (runs["left"].path / "slurm").mkdir()
    (runs["left"].path / "slurm" / "job.json").write_text('{"job": "0"}')
    assert seen(tmp_path)[runs["left"].name].state == "new"


def test_one_command_says_why_a_run_failed_and_how_it_goes_on(tmp_path, runs, capsys):
    run = runs["left"]
    run.mark_failed("Traceback\nValueError: the loss is NaN at step 7")
    (run.path / "log.txt").write_text("step 6 of 9\n")
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "last.ckpt").touch()
    assert ask("--runs", str(tmp_path)) == 0
    table = capsys.readouterr().out
    assert "1 failed, 12 new" in table and "the loss is NaN" in table
    (command,) = [line.split() for line in table.splitlines() if "--why" in line]
    assert command[:3] == ["python", "-m", "sweeps"] and sweeping.main(command[3:], LIBRARY) == 0
    text = capsys.readouterr().out
    assert "NaN at step 7" in text and "step 6 of 9" in text and "student: base" in text
    assert "last.ckpt, saved" in text and "--retry" in text
    assert f"python -m experiments fit {run.path}" in text


def test_a_job_that_died_without_a_word_shows_slurms(tmp_path, runs, capsys, squeue):
    squeue(gone=(runs["base"], "OUT_OF_MEMORY|OutOfMemory"))
    (runs["base"].path / "log.txt").touch()
    (runs["base"].path / "slurm" / "0_0_log.err").write_text("oom_kill event in StepId=0.0\n")
    ask("--runs", str(tmp_path), "--why", "base")
    text = capsys.readouterr().out
    assert "out_of_memory" in text and "oom_kill event" in text


def test_a_run_is_meant_by_the_beginning_of_its_name(tmp_path, runs):
    assert find(tmp_path, "base").path == runs["base"].path
    assert find(tmp_path, str(runs["left"].path)).path == runs["left"].path
    with pytest.raises(FileNotFoundError, match="0 runs are called 'lefft'"):
        find(tmp_path, "lefft")
    RunFolder.create(
        next(r for r in load_sweep(FIXTURES / "diamond.yaml", "tiny", [1], LIBRARY).runs.values()
             if r.recipe["recipe"] == "left"), tmp_path)  # fmt: skip
    with pytest.raises(FileNotFoundError, match="2 runs.*it may be: left-"):
        find(tmp_path, "left")


def test_watching_ends_when_all_is_done(tmp_path, runs, capsys, monkeypatch):
    from sweeps.run import status

    monkeypatch.setattr(status, "WATCH_EVERY_S", 0.01)
    sweep = load_sweep(FIXTURES / "diamond.yaml", "tiny", [0], LIBRARY)
    folders = iter([RunFolder.create(run, tmp_path) for run in sweep.runs.values()])
    monkeypatch.setattr(time, "sleep", lambda _: next(folders).mark_done())
    assert ask("--runs", str(tmp_path), "--watch") == 0
    assert "13 done" in capsys.readouterr().out
