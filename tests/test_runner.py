"""The runner with real worker processes: order, failures, kills, two at once, nothing twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from experiments.runs.folder import RunFolder
from experiments.runs.recipe import Library
from sweeps.executors import executor
from sweeps.executors.local import LocalPool
from sweeps.plan.graph import load_sweep
from sweeps.run import runner
from sweeps.run.checks import Refused
from sweeps.run.runner import Interrupted, Runner

FIXTURES = Path(__file__).parent / "fixtures"
ROOT = FIXTURES.parent.parent
LIBRARY = Library(FIXTURES / "recipes", FIXTURES / "scale")
SWEEP = """
import sys
from pathlib import Path
from experiments.runs.recipe import Library
from sweeps.plan.graph import load_sweep
import sweeps.__main__ as cli
fixtures = Path(sys.argv.pop(1))
library = Library(fixtures / "recipes", fixtures / "scale")
settings = {"step_s": float(sys.argv.pop(1)), "steps": 4}
cli.load_sweep = lambda *asked, **runs: load_sweep(*asked, settings, **runs)
sys.exit(cli.main(["run", str(fixtures / "diamond.yaml"), "--package", "fixture_verbs",
                   *sys.argv[1:]], library))
"""


class Heard:
    """A display that keeps what it is told."""

    def __init__(self, when=None):
        self.lines, self.when = [], when

    def started(self, run):
        self._hear("started", run.name)

    def progress(self, run, done, total, note):
        self._hear("progress", run.name, done)

    def ended(self, run, state, text):
        self._hear(state, run.name, text)

    def overall(self, done, total, left_s, known):
        self._hear("overall", done, total)

    def say(self, text):
        self._hear("say", text)

    def _hear(self, *line):
        self.lines.append(line)
        if self.when is not None:
            self.when(line)

    def of(self, kind):
        return [line[1] for line in self.lines if line[0] == kind]


@pytest.fixture(autouse=True)
def _workers_find_the_fixture_verbs(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{FIXTURES}")


def sweep_of(cells, tmp_path, **settings):
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps({"cells": [{"runs": cells}]}))
    return load_sweep(path, "tiny", [0], LIBRARY, settings)


def diamond(**settings):
    return load_sweep(FIXTURES / "diamond.yaml", "tiny", [0], LIBRARY, {"steps": 4} | settings)


def go(sweep, runs, heard=None, **more):
    runs.mkdir(exist_ok=True)
    heard = heard or Heard()
    pool = LocalPool(2, "fixture_verbs")
    return Runner(sweep, runs, pool, heard, **more).run(), heard


def results(runs):
    return {path.parent.name: path.read_text() for path in sorted(runs.glob("*/result.txt"))}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the diamond gives when nothing goes wrong."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{FIXTURES}")
        runs = tmp_path_factory.mktemp("expected")
        outcome, heard = go(diamond(), runs)
        assert not outcome.failed
        return results(runs)


def test_everything_runs_once_and_in_order(tmp_path, expected):
    outcome, heard = go(diamond(step_s=0.01), tmp_path / "runs")
    started = heard.of("started")
    assert len(started) == len(set(started)) == 13 and sorted(outcome.executed) == sorted(started)
    runs = diamond(step_s=0.01).runs
    for name in started:
        assert all(started.index(n.name) < started.index(name) for n in runs[name].needs.values())
    assert len(expected) == 13
    logs = {json.loads(p.read_text())["wall_s"] for p in tmp_path.glob("runs/*/record.json")}
    assert len(logs) == 13


def test_a_finished_sweep_starts_no_process(tmp_path, monkeypatch):
    sweep = sweep_of({"a": {"recipe": "base"}}, tmp_path)
    go(sweep, tmp_path / "runs")
    monkeypatch.setattr(subprocess, "Popen", None)
    outcome, heard = go(sweep, tmp_path / "runs")
    assert outcome.found_done == list(sweep.runs) and not outcome.executed and not heard.lines


def test_a_failure_blocks_only_its_dependants_and_is_tried_again_on_demand(tmp_path):
    cells = {
        "bad": {"recipe": "join", "needs": {"student": {"recipe": "right", "act": "fail"}}},
        "good": {"recipe": "join", "init": "left"},
    }
    sweep, runs = sweep_of(cells, tmp_path), tmp_path / "runs"
    outcome, heard = go(sweep, runs)
    bad = sweep.cells[0].runs["bad"]
    assert outcome.failed == [bad.needs["student"].name] and outcome.blocked == [bad.name]
    assert RunFolder(runs / sweep.cells[0].runs["good"].name).done
    text = next(line[2] for line in heard.lines if line[0] == "failed")
    assert "NaN at step 1" in text and "  | " in text, "the log's tail is shown"
    (runs / "mended").touch()
    assert go(sweep, runs)[0].failed == outcome.failed, "not tried again by itself"
    again = go(sweep, runs, retry=True)[0]
    assert not again.failed and bad.name in again.executed


def test_bad_recipes_are_all_reported_before_anything_starts(tmp_path):
    cells = {
        "one": {"recipe": "right", "act": "refuse"},
        "two": {"recipe": "right", "act": "trian"},
        "good": {"recipe": "left"},
    }
    with pytest.raises(Refused) as refused:
        go(sweep_of(cells, tmp_path), tmp_path / "runs")
    assert len(refused.value.problems) == 2 and "'trian'" in str(refused.value)
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("act", "starts", "fails"),
    [("crash_once", 2, False), ("crash_stuck", 2, True), ("crash_always", 4, False)],
)
def test_a_worker_that_dies_is_replaced_while_its_run_comes_further(tmp_path, act, starts, fails):
    """The last one dies after each of its three steps, which it has saved."""
    sweep = sweep_of({"a": {"recipe": "right", "act": act}}, tmp_path)
    outcome, heard = go(sweep, tmp_path / "runs")
    name = sweep.cells[0].runs["a"].name
    assert heard.of("started").count(name) == starts
    assert heard.of("lost") == [name] * (starts - 1)
    assert outcome.failed == ([name] if fails else [])
    if fails:
        why = RunFolder(tmp_path / "runs" / name).failure()
        assert "2 times in a row, without coming further" in why
        assert "SIGKILL" in why and "memory" in why


def test_what_a_verb_prints_lands_in_its_log(tmp_path):
    sweep = sweep_of({"a": {"recipe": "right", "act": "print"}}, tmp_path)
    go(sweep, tmp_path / "runs")
    folder = RunFolder(tmp_path / "runs" / sweep.cells[0].runs["a"].name)
    assert "said by the verb" in folder.log_tail() and "starts" in folder.log_tail()


def test_interruption_saves_and_says_how_to_go_on(tmp_path, expected):
    def stop(line):
        if line[0] == "progress" and line[2] == 2 and line[1].startswith("left"):
            raise KeyboardInterrupt

    sweep = diamond(step_s=0.3)
    with pytest.raises(Interrupted) as stopped:
        go(sweep, tmp_path / "runs", Heard(stop))
    assert any("saved" in text and "Resume with" in text for text in stopped.value.messages)
    left = next(name for name in sweep.runs if name.startswith("left"))
    assert RunFolder(tmp_path / "runs" / left).state() == "interrupted"


def stopping(sweep, tmp_path, when):
    """What is heard of a sweep that is stopped at a moment."""

    def stop(line):
        if when(line):
            raise KeyboardInterrupt

    heard = Heard(stop)
    with pytest.raises(Interrupted) as stopped:
        go(sweep, tmp_path / "runs", heard)
    return "\n".join(stopped.value.messages), [line[1] for line in heard.lines if line[0] == "say"]


def test_a_step_that_takes_long_is_waited_for_and_a_second_ctrl_c_ends_it(tmp_path, monkeypatch):
    """The verb saves at the end of its step, as a fit does at the end of its batch."""
    monkeypatch.setattr(runner, "SAY_EVERY_S", 0.3)
    slow = {"recipe": "right", "act": "slow_to_save", "step_s": 1.0}
    sweep = sweep_of({"a": slow}, tmp_path, steps=5)
    name = sweep.cells[0].runs["a"].name
    told, said = stopping(sweep, tmp_path, lambda line: line[:2] == ("progress", name))
    waits = [text for text in said if f"waiting for {name} to save" in text]
    assert "saved" in told and len(waits) > 1
    last = tmp_path / "runs" / name / "checkpoints" / "last.ckpt"
    assert last.read_text().startswith("2 "), "the step in work was saved too"
    asks = iter([True, True])

    def again(line):
        mine = line[:2] == ("progress", name) or "waiting" in str(line[1])
        return mine and next(asks, False)

    told, _ = stopping(sweep, tmp_path, again)
    assert "stopped at once" in told and last.read_text().startswith("3 ")


def test_a_stop_is_heard_by_a_worker_whose_run_has_not_begun(tmp_path):
    """Or it would be waited for to its end."""
    sweep = sweep_of({"a": {"recipe": "base", "step_s": 30}}, tmp_path)
    began = time.monotonic()
    told, _ = stopping(sweep, tmp_path, lambda line: line[0] == "started")
    assert time.monotonic() - began < 20, told


def start(runs, *words, step_s=0.0):
    command = [sys.executable, "-c", SWEEP, str(FIXTURES), str(step_s), "--runs", str(runs), *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_two_runners_share_the_work_without_doing_anything_twice(tmp_path):
    runners = [start(tmp_path, "--workers", "1", step_s=0.05) for _ in range(2)]
    said = [runner.communicate(timeout=60)[0] for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0]
    executed = [int(text.split(" runs executed")[0].rsplit(" ", 1)[1]) for text in said]
    assert sum(executed) == 13 and len(results(tmp_path)) == 13
    for folder in tmp_path.glob("*/"):
        assert (folder / "log.txt").read_text().count(" starts (process") == 1, "done twice"


@pytest.mark.parametrize("victim", ["runner", "worker"])
def test_killed_at_random_points_the_results_are_the_same(tmp_path, expected, victim):
    """The state is on the disk alone: SIGKILL anywhere, the same command, the same end."""
    dice = random.Random(victim)
    step_s = 0.02
    for _ in range(4):
        runner = start(tmp_path, step_s=step_s)
        time.sleep(dice.uniform(0.4, 1.2))
        if victim == "runner":
            runner.kill()
        elif workers := children(runner.pid):
            os.kill(dice.choice(workers), signal.SIGKILL)
        runner.communicate(timeout=60)
    last = start(tmp_path, "--retry", step_s=step_s)
    last.communicate(timeout=60)
    assert last.returncode == 0
    reference = tmp_path / "reference"
    go(diamond(step_s=step_s), reference)
    assert results(tmp_path) == results(reference)


def test_workers_end_with_a_killed_runner(tmp_path):
    runner = start(tmp_path, step_s=0.5)
    while len(workers := children(runner.pid)) < 2:
        assert runner.poll() is None, "it ended before it had started two workers"
        time.sleep(0.02)
    time.sleep(0.5)
    runner.kill()
    runner.wait()
    end = time.monotonic() + 5
    while any(alive(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.02)
    assert not [pid for pid in workers if alive(pid)]


def test_an_unknown_cluster_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="unknown cluster 'locl'; did you mean 'local'.*local"):
        executor("locl")


def children(pid):
    return [child.pid for child in psutil.Process(pid).children()]


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
