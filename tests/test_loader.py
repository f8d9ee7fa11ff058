"""Processes of the data loader: no shared memory, a limit to waiting, an end of what is stuck."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from torch.utils.data._utils.pin_memory import pin_memory

from datamodules.loader import (
    ShardDataset,
    StartedLoader,
    StoredBatch,
    as_it_is,
    leave_signals_to_the_parent,
)
from datamodules.shards.reader import ShardWriter, open_shards

ROOT = Path(__file__).parent.parent


def loader(dataset, workers: int, timeout_s: float = 0.0) -> StartedLoader:
    return StartedLoader(
        dataset,
        batch_sampler=[[0, 1], [2, 3]],
        num_workers=workers,
        timeout=timeout_s,
        worker_init_fn=leave_signals_to_the_parent,
        collate_fn=as_it_is,
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Four samples of half a megabyte."""
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, "clips", about={}) as writer:
        for number in range(4):
            latents = np.full((2, 4, 128, 256), number, np.float16)
            latents[1] = -1
            arrays = {"latents": latents, "text": np.zeros((3, 4), np.float32)}
            writer.write(f"s{number}", arrays, {"caption": f"{number}"})
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_tensors_in_full_precision(shards, workers):
    data = ShardDataset(open_shards(shards), ["latents", "text"], cache_bytes=0)
    first, second = loader(data, workers)
    assert first["key"] == ["s0", "s1"] and second["caption"] == ["2", "3"]
    assert second["latents"].dtype == torch.float32
    assert second["latents"].flatten(1).unique(dim=1).tolist() == [[-1.0, 2.0], [-1.0, 3.0]]


def test_pinned_batches_are_the_same(monkeypatch):
    """Torch's thread that pins memory asks the batch itself."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    batch = StoredBatch({"key": ["a"]}, {"x": np.ones(2, np.float16)})
    found = pin_memory(batch)
    assert found["key"] == ["a"] and found["x"] is pinned[0] and pinned[0].dtype == torch.float32


def test_nothing_goes_through_shared_memory(shards, tmp_path):
    """Docker gives 64 MB of it; a process that cannot allocate there waits for ever."""
    mounts = ["unshare", "-m", "sh", "-c"]
    small = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    if subprocess.run([*mounts, small], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    code = (
        "from pathlib import Path; from test_loader import loader;"
        "from datamodules.loader import ShardDataset;"
        "from datamodules.shards.reader import open_shards;"
        f"data = ShardDataset(open_shards(Path({str(shards)!r})), ['latents'], 0);"
        "print([float(batch['latents'].mean()) for batch in loader(data, 2, 30)])"
    )
    paths = f"{ROOT}:{ROOT / 'tests'}"
    done = subprocess.run(
        [*mounts, f'{small} && exec "$@"', "_", sys.executable, "-c", code],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, timeout=100,
    )  # fmt: skip
    assert done.stdout.strip() == "[-0.25, 0.75]", done.stderr


class _Strange(Dataset):
    """Reading its second batch does not come back, or ends the process."""

    def __init__(self, folder: Path, ends: bool) -> None:
        self.shards, self.ends = type("Shards", (), {"folder": folder})(), ends

    def __getitems__(self, indices):
        if indices[0]:
            if self.ends:
                os._exit(9)
            time.sleep(1000)
        return StoredBatch({"key": indices}, {"x": np.zeros(2, np.float32)})


def test_a_stalled_disk_ends_with_a_message_and_without_its_processes(tmp_path):
    others = children()  # of earlier tests, such as a server of forks
    batches = iter(loader(_Strange(tmp_path, ends=False), 1, timeout_s=1.0))
    next(batches)
    began, mine = time.monotonic(), children() - others
    with pytest.raises(TimeoutError, match=rf"{tmp_path}: no batch for 1 s .*loader_timeout_s"):
        next(batches)
    assert mine, "there was a process"
    while mine & children():  # they would be waited for when the program ends
        assert time.monotonic() - began < 60, "the process sleeps for a quarter of an hour"
        time.sleep(0.01)


def test_a_loader_process_that_is_killed_is_said(tmp_path):
    batches = iter(loader(_Strange(tmp_path, ends=True), 1, timeout_s=60.0))
    with pytest.raises(ChildProcessError, match=rf"{tmp_path}: a loader process ended .*memory"):
        list(batches)


def children() -> set[int]:
    """Live child processes of this one that are no zombies."""
    found = set()
    for each in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = each.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.add(int(each.parent.name))
    return found
