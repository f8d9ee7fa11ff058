"""Behaviour of a group of ranks when one of them fails, dies, is lost or is stopped.

The verb here has no heavy imports, so a group starts quickly. Real fits: test_launch.py.
"""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from experiments.launch.execute import execute
from experiments.launch.ranks.launcher import RankLost
from experiments.runs.folder import RunFolder
from experiments.runs.lock import Busy

VERB = """
import logging, os, signal, sys, time
from pathlib import Path

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

def check(recipe):
    pass

def run(recipe, folder):
    here = folder.path / f"here-{RANK}-{os.environ['LOCAL_RANK']}-of-{WORLD}"
    here.write_text(str(os.getpid()))
    logging.getLogger("verb").info("rank %d at work", RANK)
    while len(list(folder.path.glob("here-*"))) < WORLD:
        time.sleep(0.01)
    what, rank = recipe["fit"]["what"], recipe["fit"].get("rank", 1)
    folder.progress(RANK, WORLD, what)
    if what == "done":
        return
    if RANK == rank and what == "fail":
        raise ValueError("the cure is here")
    if RANK == rank and what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if RANK == rank and what in ("SIGABRT", "SIGUSR2"):
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)  # as before rank.py ignores it
        os.kill(os.getpid(), signal.Signals[what])
    if what == "abort":  # as NCCL's watchdog does soon after another rank's error
        if RANK == rank:
            raise ValueError("the cure is here")
        time.sleep(0.3)
        os.abort()
    try:
        time.sleep(60)
    finally:
        (folder.path / f"stopped-{RANK}").touch()
        if what == "abort_when_stopped" and RANK == rank:
            os.abort()
"""


@pytest.fixture
def group(tmp_path, monkeypatch):
    """A folder whose verb does `what` in `devices` processes."""
    package = tmp_path / "light"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "fit.py").write_text(VERB)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(what: str, devices: int = 2, **fit) -> RunFolder:
        folder = tmp_path / "runs" / "made"
        folder.mkdir(parents=True, exist_ok=True)
        recipe = {
            "recipe": "made", "verb": "fit", "seed": 0, "needs": {}, "launch": {"devices": devices},
            "fit": {"steps": 1, "what": what, **fit},
        }  # fmt: skip
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return RunFolder(folder)

    yield make
    sys.modules.pop("light", None), sys.modules.pop("light.fit", None)


def names(folder: RunFolder, start: str) -> list[str]:
    return sorted(path.name for path in folder.path.glob(f"{start}*"))


def alive(folder: RunFolder) -> list[int]:
    """The ranks that still run."""
    pids = [int(path.read_text()) for path in folder.path.glob("here-*")]
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def test_one_party_writes_and_all_take_part(group):
    folder, heard = group("done", devices=3), []
    assert execute(folder, lambda *progress: heard.append(progress), "light")
    assert names(folder, "here") == ["here-0-0-of-3", "here-1-1-of-3", "here-2-2-of-3"]
    assert folder.done and not folder.running() and not folder.failure()
    assert heard == [(0, 3, "done")], "the first rank alone reports"
    assert names(folder, "log") == ["log.rank1.txt", "log.rank2.txt", "log.txt"]
    for rank, log in enumerate(("log.txt", "log.rank1.txt", "log.rank2.txt")):
        said = (folder.path / log).read_text()
        assert [f"rank {other} at work" in said for other in range(3)] == [
            other == rank for other in range(3)
        ]
    record = folder.read_record()
    assert record["devices"] == 3 and record["device_s"] == pytest.approx(3 * record["wall_s"])
    assert not execute(folder, package="light"), "it is done"


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_on_any_rank_ends_all_and_is_shown(group, rank):
    folder, began = group("fail", rank=rank), time.monotonic()
    with pytest.raises(ChildProcessError, match=f"rank {rank} of 2.*the cure is here"):
        execute(folder, package="light")
    assert time.monotonic() - began < 20, "the other one slept a minute"
    assert not alive(folder)
    assert folder.state() == "failed" and "the cure is here" in folder.failure()
    assert f"rank {rank} of 2" in folder.failure()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_all_and_is_no_failure(group, rank):
    folder = group("die", rank=rank)
    with pytest.raises(RankLost, match=f"rank {rank} of 2.*SIGKILL"):
        execute(folder, package="light")
    assert not alive(folder)
    assert folder.state() == "interrupted", "so that it is continued"


def test_a_rank_that_aborts_after_anothers_error_does_not_hide_it(group):
    folder = group("abort", rank=0)
    with pytest.raises(ChildProcessError, match="rank 0 of 2.*the cure is here"):
        execute(folder, package="light")
    assert folder.state() == "failed" and "the cure is here" in folder.failure()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("what", ["SIGABRT", "SIGUSR2"])
def test_an_abort_or_a_warning_of_slurms_is_a_loss_and_no_failure(group, what, rank):
    folder = group(what, rank=rank)
    with pytest.raises(RankLost, match=f"rank {rank} of 2"):
        execute(folder, package="light")
    assert not alive(folder) and folder.state() == "interrupted"


def started(folder: RunFolder, until: str = "here", count: int = 2) -> subprocess.Popen:
    """The command line, once there are so many files of a kind: its ranks are all at work."""
    code = f"from experiments.launch.execute import execute;\
from experiments.runs.folder import RunFolder;\
from signal import SIGINT, SIGTERM, default_int_handler, signal;\
[signal(number, default_int_handler) for number in (SIGINT, SIGTERM)];\
execute(RunFolder({str(folder.path)!r}), package='light')"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while len(names(folder, until)) < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    time.sleep(0.1)
    return process


def test_an_interrupt_reaches_every_rank(group):
    folder = group("wait")
    process = started(folder)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in said and "Resume with the same command" in said
    assert names(folder, "stopped") == ["stopped-0", "stopped-1"], "each could save"
    assert folder.state() == "interrupted"


def test_what_aborts_when_it_is_asked_to_stop_was_interrupted(group):
    folder = group("abort_when_stopped")
    process = started(folder)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in said and "ChildProcessError" not in said and "Lost" not in said
    assert folder.state() == "interrupted" and not folder.failure()


def test_a_failure_of_long_ago_is_not_this_attempts(group, tmp_path):
    """Ctrl-C while the ranks still import, before the first one has cleared it."""
    slow = "import os, time\nif 'RANK' in os.environ: time.sleep(30)"
    folder = group("wait")
    folder.mark_failed("long ago")
    with folder.lock(), pytest.raises(Busy):
        execute(folder, package="light")
    for left in ("log.rank1.txt", *names(folder, "here")):
        (folder.path / left).unlink()
    (tmp_path / "sitecustomize.py").write_text(slow)  # of the group's PYTHONPATH
    process = started(folder, until="log.rank", count=1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert "KeyboardInterrupt: made" in said and "ChildProcess" not in said and "Lost" not in said
    assert not names(folder, "here") and folder.failure() == "long ago\n"


def test_every_process_says_where_it_stands(group):
    folder = group("wait")
    process = started(folder)
    (first, second) = (int((folder.path / f"here-{r}-{r}-of-2").read_text()) for r in range(2))
    for pid in (process.pid, first, second):
        os.kill(pid, signal.SIGUSR1)
    time.sleep(0.5)
    assert process.poll() is None and len(alive(folder)) == 2
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert "in execute_ranks" in said, "the one that watches"
    assert said.count("most recent call first") >= 2 and "light/fit.py" in said, "rank 0"
    assert "light/fit.py" in (folder.path / "log.rank1.txt").read_text()


def test_a_rank_whose_parent_is_gone_already_does_nothing(group):
    folder = group("done", devices=1)
    words = [sys.executable, "-m", "experiments.launch.ranks", str(folder.path), "2", "light"]
    orphan = subprocess.run([*words, str(os.getpid() + (1 << 22))], timeout=20)
    assert orphan.returncode == 1 and not names(folder, "here")
    child = subprocess.run([*words, str(os.getpid())], timeout=20, stderr=subprocess.PIPE)
    assert child.returncode == 0 and folder.done


def test_ranks_end_with_a_killed_parent(group):
    folder = group("wait")
    process = started(folder)
    assert folder.running()
    process.kill()
    process.communicate(timeout=20)
    end = time.monotonic() + 10
    while alive(folder) and time.monotonic() < end:
        time.sleep(0.02)
    assert not alive(folder) and not folder.running() and folder.state() == "interrupted"
