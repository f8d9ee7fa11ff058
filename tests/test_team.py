"""Who is which process of a run, and what a group does when one of it fails, dies or is stopped.

The verb here imports nothing heavy, so a group starts in a moment. Real fits: test_launch.py.
"""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from experiments.execute import execute
from experiments.folder import RunFolder
from experiments.launch.place import first_host, place_of, ranks_here
from experiments.launch.team import RankLost

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
    if what == "abort":  # as NCCL's watchdog does soon after another rank's error
        if RANK == rank:
            raise ValueError("the cure is here")
        time.sleep(0.3)
        os.abort()
    try:
        time.sleep(60)
    finally:
        (folder.path / f"stopped-{RANK}").touch()
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
        folder = tmp_path / "runs" / "made-00000000"
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


def started(folder: RunFolder) -> subprocess.Popen:
    """The command line, once all its ranks are at work."""
    code = f"from experiments.execute import execute; from experiments.folder import RunFolder;\
from signal import SIGINT, SIGTERM, default_int_handler, signal;\
[signal(number, default_int_handler) for number in (SIGINT, SIGTERM)];\
execute(RunFolder({str(folder.path)!r}), package='light')"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while len(names(folder, "here")) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    time.sleep(0.2)
    return process


def test_an_interrupt_reaches_every_rank(group):
    folder = group("wait")
    process = started(folder)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in said and "Go on with the same command" in said
    assert names(folder, "stopped") == ["stopped-0", "stopped-1"], "each could save"
    assert folder.state() == "interrupted"


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


# -- places ----------------------------------------------------------------------------------------


def fit(nodes=1, devices=1, **launch) -> dict:
    launch = {"nodes": nodes, "devices": devices, **launch}
    return {"verb": "fit", "fit": {"steps": 2}, "stage": {"class": "CausalCD"}, "launch": launch}


def test_one_device_is_this_process():
    assert ranks_here(fit(), {}) == []
    assert place_of(fit(), {}).environment()["WORLD_SIZE"] == "1"


@pytest.mark.parametrize(
    "other",
    [
        {"verb": "curate"},
        {"fit": {"steps": 0}},
        {"stage": {"class": "WorldProbe"}},
    ],
)
def test_what_does_not_train_takes_one_process(other):
    assert ranks_here(fit(2, 8) | other, {}) == []
    assert place_of(fit(2, 8) | other, {}).world == 1


def test_a_strategy_with_state_gets_a_process_of_its_own():
    (only,) = ranks_here(fit(strategy="deepspeed"), {})
    assert only.world == 1 and only.port
    assert ranks_here(fit(strategy="deepspeed"), only.environment()) == [], "that one is it"


def test_several_nodes_by_hand():
    environment = {"NODE_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "1234"}
    places = ranks_here(fit(2, 3), environment)
    assert [(place.rank, place.local_rank) for place in places] == [(3, 0), (4, 1), (5, 2)]
    assert {(p.world, p.node, p.nodes, p.address, p.port) for p in places} == {
        (6, 1, 2, "first", 1234)
    }
    for place in places:
        assert place_of(fit(2, 3), place.environment()) == place
    with pytest.raises(ValueError, match="NODE_RANK"):
        ranks_here(fit(2, 3), {})


SLURM = {"SLURM_STEP_NODELIST": "gpu-[07-08]", "SLURM_JOB_ID": "123", "SLURM_NODEID": "1"}


def test_slurm_with_a_task_per_node_or_per_device():
    per_node = SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    places = ranks_here(fit(2, 3), per_node)
    assert [place.rank for place in places] == [3, 4, 5]
    assert {(place.address, place.port) for place in places} == {("gpu-07", 29623)}
    per_device = SLURM | {"SLURM_STEP_NUM_TASKS": "6", "SLURM_PROCID": "5", "SLURM_LOCALID": "2"}
    assert ranks_here(fit(2, 3), per_device) == []
    assert place_of(fit(2, 3), per_device) == places[2]


def test_torchrun_is_believed_and_must_agree_with_the_recipe():
    environment = {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "9",
    }  # fmt: skip
    assert ranks_here(fit(2, 2), environment) == []
    place = place_of(fit(2, 2), environment)
    assert (place.rank, place.node, place.local_rank, place.port) == (3, 1, 1, 9)
    with pytest.raises(ValueError, match="4 processes were started.*launch.nodes"):
        place_of(fit(1, 2), environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n[3-5,9]", "n3"), ("gpu-[03-05],x[1]", "gpu-03"), ("a1,b2", "a1"),
     ("r[1-2]-ib", "r1-ib"), ("", "")],
)  # fmt: skip
def test_first_host(nodes, first):
    assert first_host(nodes) == first
