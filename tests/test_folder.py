"""A run folder is the only state: locks, states, atomic files, and what executing leaves in it."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules import atomic
from datamodules.atomic import write_text
from experiments.launch import run_record
from experiments.launch.execute import execute
from experiments.runs.folder import Busy, RunFolder
from experiments.runs.recipe import Library, resolve

FIXTURES = Path(__file__).parent / "fixtures"
LIBRARY = Library(FIXTURES / "recipes", FIXTURES / "scale")
HOLD = """
import sys, time
from experiments.runs.folder import RunFolder
with RunFolder(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _fixture_verbs(monkeypatch):
    monkeypatch.syspath_prepend(str(FIXTURES))


def make(tmp_path, name="base", **settings):
    return RunFolder.create(resolve(name, "tiny", settings, LIBRARY), tmp_path)


def test_states_in_the_order_of_a_life(tmp_path):
    folder = make(tmp_path)
    assert folder.state() == "new"
    (folder.path / "log.txt").touch()
    assert folder.state() == "interrupted"
    with folder.lock():
        assert folder.state() == "running"
    folder.mark_failed("no more numbers")
    assert folder.state() == "failed" and folder.failure() == "no more numbers\n"
    folder.mark_done()
    assert folder.state() == "done" and not folder.failure()


def launched(tmp_path, threads):
    """The folder as a command line with these launch settings makes it, and what it then holds."""
    run = resolve("base", "tiny", {}, LIBRARY)
    run = replace(run, recipe=run.recipe | {"launch": {"threads": threads}})
    RunFolder.create(run, tmp_path)
    return RunFolder(tmp_path / run.name), RunFolder(tmp_path / run.name).recipe["launch"]


def test_launch_settings_change_only_while_nobody_has_the_run(tmp_path, monkeypatch):
    folder, _ = launched(tmp_path, 1)
    assert launched(tmp_path, 2)[1] == {"threads": 2}
    with folder.lock():
        assert launched(tmp_path, 3)[1] == {"threads": 2} and f"{os.getpid()}" in folder.taken()
    (folder.path / "slurm").mkdir()
    (folder.path / "slurm" / "job.json").write_text('{"job": "12"}')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert launched(tmp_path, 4)[1] == {"threads": 4}, "no Slurm here to start it"
    (tmp_path / "bin").mkdir()
    squeue = tmp_path / "bin" / "squeue"
    for state, threads in (("PENDING", 4), ("RUNNING", 4), ("CANCELLED", 5)):
        squeue.write_text(f"#!/bin/sh\necho {state}\n")
        squeue.chmod(0o755)
        assert launched(tmp_path, 5)[1] == {"threads": threads}, state
        assert folder.taken() == ("Slurm job 12" if threads == 4 else "")


def test_what_was_kept_last(tmp_path):
    folder = make(tmp_path)
    assert folder.saved_at() == 0
    (folder.path / "shards").mkdir()
    (folder.path / "checkpoints").mkdir()
    for number, name in enumerate(("shards/000000.tar", "checkpoints/last.ckpt"), 1):
        (folder.path / name).touch()
        os.utime(folder.path / name, (number, number))
        assert folder.saved_at() == number


def test_a_killed_holder_does_not_block(tmp_path):
    folder = make(tmp_path)
    command = [sys.executable, "-c", HOLD, str(folder.path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=FIXTURES.parent.parent)
    assert holder.stdout.readline() == b"held\n"
    assert folder.running()
    with pytest.raises(Busy, match=f"process {holder.pid}"), folder.lock():
        pass
    holder.kill()
    holder.wait()
    assert not folder.running()
    with folder.lock():
        pass


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_text(path, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_records_are_merged(tmp_path):
    folder = make(tmp_path)
    folder.record({"wall_s": 1, "counters": {"forwards": 2}})
    folder.record({"wall_s": 3, "counters": {"backwards": 4}})
    assert folder.read_record() == {"wall_s": 3, "counters": {"forwards": 2, "backwards": 4}}


def test_a_need_that_is_not_done_is_refused(tmp_path):
    folder = make(tmp_path, "left")
    need = make(tmp_path)
    assert [each.name for each in folder.closure()] == [need.name, folder.name]
    with pytest.raises(FileNotFoundError, match=f"student {need.name} is new"):
        folder.need("student")
    need.mark_done()
    assert folder.need("student") == need.path


def test_executing_records_and_finishes(tmp_path):
    folder, heard = make(tmp_path), []
    execute(folder, lambda *told: heard.append(told), "fixture_verbs")
    record = folder.read_record()
    assert folder.done and heard[-1] == (3, 3, "loss 1.0")
    assert record["counters"] == {"forwards": 3} and record["wall_s"] > 0
    assert record["peak_memory_bytes"] > 1e6 and record["bytes_written"] > 0
    assert {"device", "device_s", "started", "ended", "versions", "code"} <= set(record)
    stamp = (folder.path / "done.json").stat().st_mtime_ns
    execute(folder, None, "fixture_verbs")
    assert (folder.path / "done.json").stat().st_mtime_ns == stamp, "a finished run is left alone"


def test_a_run_neither_sees_nor_leaves_global_state(tmp_path):
    first = make(tmp_path / "a", "right", act="print")
    make(tmp_path / "a").mark_done()
    write_text(tmp_path / "a" / first.recipe["needs"]["student"] / "result.txt", "x")
    random.seed(5)
    handlers, directory = logging.getLogger().handlers[:], os.getcwd()
    execute(first, None, "fixture_verbs")
    assert os.getcwd() == directory and "LEFT_BEHIND" not in os.environ
    assert logging.getLogger().handlers == handlers
    runs = []
    for place in ("b", "c"):
        random.seed(place)
        runs.append(make(tmp_path / place))
        execute(runs[-1], None, "fixture_verbs")
    results = [(run.path / "result.txt").read_text() for run in runs]
    assert results[0] == results[1], "the result depends on what the process did before"


def test_log_txt_hears_loggers_that_pass_nothing_on_from_the_first_run_on(tmp_path, monkeypatch):
    """As Lightning's and diffusers' do not, which exist only once the verb is imported."""
    package = tmp_path / "quiet_verbs"
    package.mkdir()
    (package / "fit.py").write_text(
        "import logging\nlog = logging.getLogger('quiet')\nlog.propagate = False\n"
        "log.addHandler(logging.NullHandler())\n"
        "def check(recipe): pass\ndef run(recipe, folder): log.warning('said quietly')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = make(tmp_path)
    assert execute(folder, None, "quiet_verbs")
    assert (folder.path / "log.txt").read_text().count("quiet: said quietly") == 1
    (handler,) = logging.getLogger("quiet").handlers
    assert isinstance(handler, logging.NullHandler)


def test_a_verb_that_cannot_be_imported_is_a_failure_with_its_trace(tmp_path):
    folder = make(tmp_path)
    with pytest.raises(ModuleNotFoundError):
        execute(folder, None, "no_such_verbs")
    assert folder.state() == "failed" and "no_such_verbs" in folder.failure()
    assert "ModuleNotFoundError" in (folder.path / "log.txt").read_text()


def test_a_failure_is_kept_with_its_trace(tmp_path):
    folder = make(tmp_path, "right", act="fail")
    make(tmp_path).mark_done()
    write_text(tmp_path / folder.recipe["needs"]["student"] / "result.txt", "x")
    with pytest.raises(ValueError, match="NaN"):
        execute(folder, None, "fixture_verbs")
    assert folder.state() == "failed"
    assert "the loss is NaN at step 1" in folder.failure() and "NaN" in folder.log_tail()
    (tmp_path / "mended").touch()
    execute(folder, None, "fixture_verbs")
    assert folder.done and not folder.failure()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupted_run_says_what_is_saved_and_goes_on(tmp_path, stop):
    folder = make(tmp_path)

    def interrupt(done, *_):
        if done == 2:
            raise stop

    with pytest.raises(KeyboardInterrupt, match="(?s)last.ckpt.*python -m experiments fit"):
        execute(folder, interrupt, "fixture_verbs")
    assert folder.state() == "interrupted"
    wall = folder.read_record()["wall_s"]
    execute(folder, None, "fixture_verbs")
    whole = make(tmp_path / "whole")
    execute(whole, None, "fixture_verbs")
    texts = [(each.path / "result.txt").read_text() for each in (folder, whole)]
    assert texts[0] == texts[1] and folder.read_record()["wall_s"] > wall


def test_time_is_recorded_even_of_a_killed_attempt(tmp_path, monkeypatch):
    monkeypatch.setattr(run_record, "HEARTBEAT_S", 0.02)
    folder, seen = make(tmp_path, step_s=0.1), []
    execute(folder, lambda *_: seen.append(folder.read_record()), "fixture_verbs")
    assert seen[1]["wall_s"] > 0.05 and seen[1]["wall_s"] < seen[2]["wall_s"]


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    """A rename that reaches the disk before the content would leave an empty file at a crash."""
    path, seen = tmp_path / "a.txt", []
    sync, replace = atomic.sync, os.replace
    monkeypatch.setattr(atomic, "sync", lambda part: (seen.append(part.read_text()), sync(part)))
    monkeypatch.setattr(os, "replace", lambda *names: (seen.append("renamed"), replace(*names)))
    write_text(path, "all of it")
    assert seen == ["all of it", "renamed"] and path.read_text() == "all of it"


def test_a_polite_kill_from_the_command_line_saves_after_a_question(tmp_path):
    folder = make(tmp_path, step_s=0.1, steps=100)
    code = (
        "import sys; from experiments import __main__ as m;"
        "from experiments.launch import execute as e;"
        "m.execute = lambda f: e.execute(f, None, 'fixture_verbs');"
        f"sys.exit(m.main(['fit', {str(folder.path)!r}]))"
    )
    root = FIXTURES.parent.parent
    path = f"{root}{os.pathsep}{FIXTURES}"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (folder.path / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 130 and "saved" in said and "Resume with" in said
    assert "most recent call first" in said and "fixture_verbs/fit.py" in said, "where it stood"
    assert json.loads((folder.path / "record.json").read_text())["wall_s"] > 0
