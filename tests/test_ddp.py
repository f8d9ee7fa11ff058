"""DDP in two processes equals one process: the same losses, the same weights."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import ddp_program
import pytest
import torch
from ddp_program import STAGES, STEPS
from minimal import batch, network

from datamodules.shards.reader import ShardWriter

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> tuple[Path, Path]:
    """Where one process and two processes have written, on ten clips in batches of four."""
    folder = tmp_path_factory.mktemp("ddp")
    data = batch(10)
    with ShardWriter(folder / "shards", "clips", about={}, negative=data["text"][0].numpy()) as to:
        for row, key in enumerate(data["key"]):
            arrays = {name: data[name][row].numpy() for name in ("latents", "text")}
            to.write(key, arrays, {"caption": key})
    one, two = folder / "one", folder / "two"
    one.mkdir(), two.mkdir()
    ddp_program.main(str(folder / "shards"), str(one), "1", "auto")
    words = [str(folder / "shards"), str(two), "2", "ddp_find_unused_parameters_true"]
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE")}
    environment |= {"PYTHONPATH": f"{HERE}:{HERE.parent}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(HERE / "ddp_program.py"), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[0]
    assert process.returncode == 0, said
    return one, two


def losses(folder: Path, name: str) -> torch.Tensor:
    """Mean over the ranks, per step."""
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-*.json"))]
    assert all(len(rank) == STEPS for rank in ranks)
    return torch.tensor(ranks)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_two_processes_equal_one(outputs, name):
    one, two = (losses(folder, name) for folder in outputs)
    assert len(one) == 1 and len(two) == 2, "two processes did take part"
    assert not torch.allclose(two[0], two[1], rtol=1e-3), "each on its own half"
    torch.testing.assert_close(two.mean(0), one[0], rtol=1e-4, atol=1e-5)

    alone, shared = (torch.load(folder / f"{name}.pt", weights_only=True) for folder in outputs)
    start = network(1).state_dict()
    moved = [k for k in start if not torch.allclose(alone[f"student.{k}"], start[k], atol=1e-4)]
    assert len(moved) > len(start) / 2
    for key, value in alone.items():
        torch.testing.assert_close(shared[key], value, rtol=1e-5, atol=1e-5)
