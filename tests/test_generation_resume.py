"""Pairs and samples after a kill: what was finished is kept, the result is the same to the bit."""

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

from experiments.__main__ import main
from experiments.generation import generation
from experiments.launch import shard_workers as together
from experiments.runs.folder import RunFolder
from experiments.verbs import pairs

SHARD_BYTES = {"pairs": 14_000, "sample": 4_400}  # two and three samples of the smallest size
TARS = {"pairs": 4, "sample": 3}
KINDS = {
    "pairs": ["pairs", "causal_pairs", "stages.pairs.batch=2"],
    "sample": ["sample", "sample", "sampling.save=mp4", "sampling.batch=2"],
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


def killed(kind: str, runs: Path) -> tuple[Path, set[str]]:
    """Kill the verb when it has finished a tar and noted it; its folder, and what is in tars."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.__main__", "experiments.verbs.pairs"])
    process = context.Process(target=slowly, args=(kind, runs))
    process.start()
    limit = time.monotonic() + 60
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


@pytest.mark.parametrize("kind", KINDS)
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
