"""Shards after a kill, and by several processes: what was finished is kept, no bit differs."""

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from minimal_runs import SETTINGS, copied, finished, only

from datamodules.shards import work as shard_work
from datamodules.shards.shard_file import note_path
from experiments.__main__ import main
from experiments.generation import generation
from experiments.launch import execute
from experiments.launch import shard_workers as together
from experiments.runs.folder import RunFolder
from experiments.verbs import pairs

SHARD_BYTES = {"pairs": 14_000, "sample": 4_400, "curate": 2**29}  # a batch of the smallest size
TARS = {"pairs": 4, "sample": 4}
KINDS = {
    "pairs": ["pairs", "causal_pairs", "stages.pairs.batch=2"],
    "sample": ["sample", "sample", "sampling.save=mp4", "sampling.batch=2"],
    "curate": ["curate", "clips", "data.clips=40"],
}


def words(kind: str, runs: Path, *more: str) -> list[str]:
    verb, recipe, *own = KINDS[kind]
    return [verb, recipe, *SETTINGS, *own, *more, "--runs", str(runs)]


def slowly(kind: str, runs: Path) -> None:
    """The body of a process that is killed: the verb, waiting before every batch."""
    generation.SHARD_BYTES = SHARD_BYTES[kind]
    module = importlib.import_module(f"experiments.verbs.{kind}")
    stack = module.stack
    module.stack = lambda *given: time.sleep(0.3) or stack(*given)
    main(words(kind, runs))


def forked(target, *arguments) -> multiprocessing.process.BaseProcess:
    """A process that has imported everything and runs nothing but this."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.__main__", "experiments.verbs.pairs"])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def killed(kind: str, runs: Path) -> tuple[Path, set[str]]:
    """Kill the verb when it has finished a tar and noted it; its folder, and what is in tars."""
    process = forked(slowly, kind, runs)
    limit = time.monotonic() + 240
    while not list(runs.glob(f"{KINDS[kind][1]}-*/shards/000000.json")):
        assert process.is_alive() and time.monotonic() < limit
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    folder = only(runs, KINDS[kind][1])
    assert not (folder / "shards" / "manifest.json").exists() and not RunFolder(folder).done
    notes = [json.loads(path.read_text()) for path in (folder / "shards").glob("??????.json")]
    return folder, {key for note in notes for key in note["members"]}


def contents(run: Path) -> dict[str, bytes]:
    """Everything that the verb made, without the claims of its makers."""
    folders = [run / "shards", run / "videos"]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(run)): path.read_bytes() for path in files if path.suffix != ".claim"
    }


@pytest.mark.parametrize("kind", TARS)
def test_killed_and_gone_on_with(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(generation, "SHARD_BYTES", SHARD_BYTES[kind])
    whole, runs = (copied(tmp_path / name) for name in ("whole", "killed"))
    module, batches = importlib.import_module(f"experiments.verbs.{kind}"), []

    def stack(samples, *rest):
        batches.append(tuple(sample["key"] for sample in samples))
        return generation.stack(samples, *rest)

    monkeypatch.setattr(module, "stack", stack)
    assert main(words(kind, whole)) == 0
    expected, all_batches = contents(finished(whole, KINDS[kind][1])), set(batches)
    assert sum(name.endswith(".tar") for name in expected) == TARS[kind]
    assert sum(name.endswith(".mp4") for name in expected) == (8 if kind == "sample" else 0)

    left, kept = killed(kind, runs)
    tar = (left / "shards" / "000000.tar").stat()
    batches.clear()
    assert main(words(kind, runs)) == 0
    assert (left / "shards" / "000000.tar").stat().st_mtime_ns == tar.st_mtime_ns
    assert kept and set(batches) == {batch for batch in all_batches if not kept.issuperset(batch)}
    assert contents(left) == expected


def test_a_helper_makes_pairs_and_the_verb_completes_them(tmp_path, monkeypatch):
    """The helper that several devices would start, here in the verb's place."""
    one, two = (copied(tmp_path / name) for name in ("one", "two"))
    assert main(words("pairs", one)) == 0
    expected = contents(finished(one, "causal_pairs"))
    started = []

    def helper(command, env):
        done = subprocess.run(command, env=env, capture_output=True, encoding="utf-8")
        assert done.returncode == 0 and "made 1 shards" in done.stderr, done.stderr
        started.append(command)
        return SimpleNamespace(terminate=lambda: None, wait=lambda limit_s: 0)

    monkeypatch.setattr(
        together,
        "subprocess",
        SimpleNamespace(Popen=helper, TimeoutExpired=subprocess.TimeoutExpired),
    )
    monkeypatch.setattr(pairs, "stack", None)  # nothing is left to make here
    assert main(words("pairs", two, "launch.devices=2")) == 0
    made = finished(two, "causal_pairs")
    own = ["--of", str(os.getpid())]
    assert started == [[sys.executable, "-m", "experiments", "join", str(made), *own]]
    assert contents(made) == expected
    record = RunFolder(made).read_record()
    assert record["devices"] == 2 and record["device_s"] == pytest.approx(2 * record["wall_s"])


# -- several nodes ---------------------------------------------------------------------------------


def torchrun(rank: int, nodes: int, devices: int) -> dict[str, str]:
    """What torchrun sets for a process per device."""
    local = {"LOCAL_RANK": rank % devices, "LOCAL_WORLD_SIZE": devices}
    world = {"RANK": rank, "WORLD_SIZE": nodes * devices}
    return {name: str(value) for name, value in (world | local).items()} | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"
    }  # fmt: skip


def by_hand(rank: int, nodes: int, devices: int) -> dict[str, str]:
    """What a user sets for a process per node, which starts those of the other devices."""
    return {"NODE_RANK": str(rank)}


def of_several(kind: str, runs: Path, environment: dict, launch: list[str]) -> None:
    """The body of one of a run's processes. It makes one tar only while ``hold`` is there."""
    os.environ.update(environment)
    generation.SHARD_BYTES, execute.LEADERLESS_S, execute.POLL_S = SHARD_BYTES[kind], 1.0, 0.1
    shard_work.POLL_S = 0.1
    make = shard_work.ShardMaker._make

    def held(self, number: int) -> None:
        while self.__dict__.get("held") and (runs / "hold").exists():
            time.sleep(0.02)
        self.held = True
        make(self, number)

    shard_work.ShardMaker._make = held
    raise SystemExit(main(words(kind, runs, *launch)))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes, by kind; made once."""
    made = {}

    def make(kind: str) -> dict[str, bytes]:
        if kind not in made:
            runs = copied(tmp_path_factory.mktemp(kind), "clips" if kind == "curate" else "-")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(generation, "SHARD_BYTES", SHARD_BYTES[kind])
                assert main(words(kind, runs)) == 0
            made[kind] = contents(finished(runs, KINDS[kind][1]))
        return made[kind]

    return make


@pytest.mark.parametrize(
    "kind, launcher, nodes, devices",
    [("pairs", by_hand, 2, 1), ("pairs", torchrun, 2, 2), ("sample", torchrun, 1, 2),
     ("curate", by_hand, 2, 1)],
)  # fmt: skip
def test_any_number_makes_the_same_bytes(tmp_path, alone, kind, launcher, nodes, devices):
    runs = copied(tmp_path, "clips" if kind == "curate" else "-")
    launch = [f"launch.nodes={nodes}", f"launch.devices={devices}"]
    count = nodes if launcher is by_hand else nodes * devices
    processes = [
        forked(of_several, kind, runs, launcher(rank, nodes, devices), launch)
        for rank in range(count)
    ]
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * count
    run = finished(runs, KINDS[kind][1])
    assert contents(run) == alone(kind)
    record = RunFolder(run).read_record()
    assert record["devices"] == nodes * devices
    assert len(list(run.glob("log.rank*.txt"))) == count - 1


def noted(runs):
    """The finished shards: between a tar and its note it may still be lost."""
    tars = runs.glob("causal_pairs-*/shards/*.tar")
    return [path for path in tars if note_path(path.parent, int(path.stem)).is_file()]


@pytest.mark.parametrize("lost", [0, 1], ids=["leader", "other"])
def test_a_lost_node_costs_the_shard_it_was_making(tmp_path, alone, lost):
    runs, launch = copied(tmp_path), ["launch.nodes=2"]
    (runs / "hold").touch()
    processes = [
        forked(of_several, "pairs", runs, by_hand(rank, 2, 1), launch) for rank in range(2)
    ]
    limit = time.monotonic() + 240
    while len(noted(runs)) < 2:
        assert all(process.is_alive() for process in processes) and time.monotonic() < limit
        time.sleep(0.02)
    os.kill(processes[lost].pid, signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in noted(runs)}
    (runs / "hold").unlink()
    processes[1 - lost].join(240)
    assert processes[1 - lost].exitcode == 0
    assert contents(finished(runs, "causal_pairs")) == alone("pairs")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "none was made again"
