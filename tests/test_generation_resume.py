"""Pairs and samples after a kill: what was finished is kept, the result is the same to the bit."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from minimal_runs import SETTINGS, copied, finished, only

from experiments import generation
from experiments.__main__ import main
from experiments.folder import RunFolder

TAR_BYTES = {"pairs": 20_000, "sample": 4_400}  # three samples of the smallest size
KINDS = {
    "pairs": ["pairs", "causal_pairs", "stages.pairs.batch=2"],
    "sample": ["sample", "sample", "sampling.save=mp4", "sampling.batch=2"],
}


def words(kind: str, runs: Path) -> list[str]:
    verb, recipe, *own = KINDS[kind]
    return [verb, recipe, *SETTINGS, *own, "--runs", str(runs)]


def slowly(kind: str, runs: Path) -> None:
    """The body of a process that is killed: the verb, waiting after every batch."""
    generation.TAR_BYTES = TAR_BYTES[kind]
    told = RunFolder.progress

    def progress(folder: RunFolder, done: int, total: int, note: str = "") -> None:
        told(folder, done, total, note)
        time.sleep(0.3)

    RunFolder.progress = progress
    main(words(kind, runs))


def killed(kind: str, runs: Path) -> Path:
    """Kill the verb when it has finished a tar and noted it; the folder that it leaves."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.__main__", "experiments.pairs"])
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
    return folder


def contents(run: Path) -> dict[str, bytes]:
    """Everything that the verb made."""
    folders = [run / "shards", run / "videos"]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_gone_on_with(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(generation, "TAR_BYTES", TAR_BYTES[kind])
    whole, runs = (copied(tmp_path / name) for name in ("whole", "killed"))
    assert main(words(kind, whole)) == 0
    expected = contents(finished(whole, KINDS[kind][1]))
    assert sum(name.endswith(".tar") for name in expected) == 3
    assert sum(name.endswith(".mp4") for name in expected) == (8 if kind == "sample" else 0)

    left = killed(kind, runs)
    kept = (left / "shards" / "000000.tar").stat()
    written = 3 * len(list((left / "shards").glob("??????.json")))
    asked = []
    monkeypatch.setattr(
        RunFolder, "progress", lambda folder, done, total, note="": asked.append(done)
    )
    assert main(words(kind, runs)) == 0
    assert (left / "shards" / "000000.tar").stat().st_mtime_ns == kept.st_mtime_ns
    assert 0 < written < 8
    assert asked[0] == written // 2 * 2 + 2, "only batches of which something is missing are made"
    assert contents(left) == expected
