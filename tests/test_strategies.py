"""Strategies: the available ones, refused settings, and damage to sharded checkpoints."""

import importlib.util
import os
import shutil
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed

from callbacks.checkpoint_folder import replaced
from experiments.launch.hardware import Launch
from experiments.launch.ranks.launcher import lost_peer
from experiments.launch.ranks.topology import free_port
from experiments.launch.strategies import (
    STRATEGIES,
    check_forward_mode,
    check_strategy,
    launch_for,
    resumable,
)
from experiments.runs.recipe import resolve
from experiments.verbs.fit import check
from experiments.worlds.digits.probe import WorldProbe
from lightning_modules.causal_cd import CausalCD


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_offered_is_accepted(strategy):
    check_strategy(Launch(strategy=strategy, devices=8, nodes=2), "bf16-mixed")


@pytest.mark.parametrize(
    ("launch", "precision", "said"),
    [
        ({"strategy": "fsdp2"}, "32-true", "deepspeed with launch.zero_stage=3"),
        ({"strategy": "deepsped"}, "32-true", "did you mean 'deepspeed'.*auto.*ddp.*deepspeed"),
        ({"strategy": "deepspeed"}, "bf16-true", "fit.precision: bf16-true.*bf16-mixed"),
        ({"strategy": "deepspeed"}, "16-mixed", "fit.precision: 16-mixed.*32-true"),
    ],
)
def test_what_cannot_work_is_refused_with_what_can(launch, precision, said):
    with pytest.raises(ValueError, match=said):
        check_strategy(Launch(**launch), precision)


def test_forward_mode_is_refused_under_sharded_weights():
    recipe = resolve("stage2_tf_scm", "tiny", {"stage": {"tangent": "exact"}}).recipe
    recipe["launch"] |= {"strategy": "deepspeed", "zero_stage": 3}
    cure = "upwind or central.*launch.zero_stage=2"
    with pytest.raises(ValueError, match=f"stage.tangent: exact.*{cure}"):
        check(recipe)
    recipe["stage"]["tangent"] = "upwind"
    check(recipe)


def test_forward_mode_needs_triton_on_cuda_alone(monkeypatch):
    """Whatever launch.attention is: attention's tangent is its own kernel."""
    stage = SimpleNamespace(forward_mode="stage.tangent")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = {"triton": object()}
    monkeypatch.setattr(importlib.util, "find_spec", found.get)
    for attention in ("auto", "flex", "flash", "dense"):
        check_forward_mode(stage, Launch(attention=attention))
    found.clear()
    check_forward_mode(stage, Launch(accelerator="cpu"))
    check_forward_mode(SimpleNamespace(forward_mode=""), Launch())
    with pytest.raises(ValueError, match="stage.tangent: exact.*Triton.*central, or pip install"):
        check_forward_mode(stage, Launch())


def test_a_stage_for_one_device_gets_one():
    launch = Launch(devices=8, nodes=2, strategy="deepspeed", workers=3)
    assert launch_for(CausalCD, launch) == launch
    assert launch_for(WorldProbe, launch) == Launch(workers=3)


def test_a_checkpoint_of_the_other_kind_is_refused(tmp_path):
    last = tmp_path / "last.ckpt"
    assert resumable(last, Launch()) is None
    last.touch()
    assert resumable(last, Launch(strategy="ddp")) == last
    with pytest.raises(ValueError, match="written under launch.strategy=auto or ddp"):
        resumable(last, Launch(strategy="deepspeed"))
    last.unlink()
    last.mkdir()
    assert resumable(last, Launch(strategy="deepspeed")) == last
    with pytest.raises(ValueError, match="written under launch.strategy=deepspeed"):
        resumable(last, Launch())


def test_ranks_that_never_come_are_lost():
    """Torch's own errors of a meeting that fails, also inside one that says what was being done."""
    address = ("127.0.0.1", free_port(), 2)
    with pytest.raises(torch.distributed.DistStoreError) as alone:
        torch.distributed.TCPStore(*address, is_master=True, timeout=timedelta(seconds=1))
    with pytest.raises(torch.distributed.DistNetworkError) as nobody:
        torch.distributed.TCPStore(*address, is_master=False, timeout=timedelta(seconds=1))
    assert lost_peer(alone.value) and lost_peer(nobody.value)
    saving = OSError("checkpoint not written")
    assert not lost_peer(saving)
    saving.__cause__ = alone.value
    assert lost_peer(saving)


# -- a folder as one checkpoint --------------------------------------------------------------------


def write(path: Path, content: str, fail: type[BaseException] | None = None) -> None:
    with replaced(path, True, lambda: None) as folder:
        (folder / "first").write_text(content)
        if fail is not None:
            raise fail("no space left")
        (folder / "second").write_text(content)


def held(path: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in path.iterdir()}


def test_the_name_leads_to_the_last_whole_one(tmp_path):
    path = tmp_path / "a" / "last.ckpt"
    for content in "xyz":
        write(path, content)
        assert held(path) == {"first": content, "second": content}
        assert len(list(path.parent.iterdir())) == 2, "the link and what it leads to"


@pytest.mark.parametrize("fail", [OSError, RuntimeError, KeyboardInterrupt])
def test_one_that_was_cut_off_leaves_the_previous(tmp_path, fail):
    """A full disk, as Python and as torch say it, and a process that is killed."""
    path = tmp_path / "last.ckpt"
    full = fail is not KeyboardInterrupt
    said = OSError if full else fail
    with pytest.raises(said):
        write(path, "w", fail)
    assert not path.exists()
    write(path, "x")
    with pytest.raises(said, match="the previous one is kept" if full else None):
        write(path, "y", fail)
    assert len(list(tmp_path.iterdir())) == (2 if full else 3), "a full disk is not filled for good"
    assert held(path) == {"first": "x", "second": "x"}
    write(path, "z")
    assert held(path) == {"first": "z", "second": "z"}, "nothing of what was cut off"


def test_ranks_meet_before_and_after_writing(tmp_path):
    """Nobody writes before the folder is cleared, nothing is turned over before all are done."""
    path, met = tmp_path / "last.ckpt", []
    write(path, "x")

    def barrier():
        used = path.resolve().name
        other = next(n for n in (".last.ckpt.0", ".last.ckpt.1") if n != used)
        met.append((used, (tmp_path / other).exists(), held(path)["second"]))

    with replaced(path, True, barrier) as folder:
        (folder / "second").write_text("y")
    assert [meeting[1:] for meeting in met] == [(False, "x"), (True, "x"), (True, "x")]
    assert held(path) == {"second": "y"}


def test_a_folder_is_on_the_disk_before_its_predecessor_goes(tmp_path, monkeypatch):
    """What a machine without power keeps, in the order in which it was told to."""
    path, told = tmp_path / "last.ckpt", []

    def tell(what, real):
        def call(first, *rest, **more):
            name = os.readlink(f"/proc/self/fd/{first}") if what == "sync" else str(first)
            told.append((what, str(Path(name).relative_to(tmp_path))))
            return real(first, *rest, **more)

        return call

    write(path, "x")
    monkeypatch.setattr(os, "fsync", tell("sync", os.fsync))
    monkeypatch.setattr(os, "replace", tell("replace", os.replace))
    with replaced(path, True, lambda: None) as folder:
        (folder / "parts").mkdir()
        for name in ("latest", "parts/0"):
            (folder / name).write_text("y")
        monkeypatch.setattr(shutil, "rmtree", tell("remove", shutil.rmtree))
    new, turned = folder.name, told.index(("replace", ".last.ckpt.link"))
    whole = {("sync", f"{new}{inner}") for inner in ("", "/latest", "/parts", "/parts/0")}
    assert set(told[:turned]) == whole
    assert told[turned + 1 :] == [("sync", "."), ("remove", ".last.ckpt.0")]


def test_other_ranks_only_write(tmp_path):
    path = tmp_path / "last.ckpt"
    write(path, "x")
    (tmp_path / ".last.ckpt.1").mkdir()  # as the first rank clears it
    with replaced(path, False, lambda: None) as folder:
        (folder / "share").write_text("1")
    assert folder.name == ".last.ckpt.1" and held(path)["first"] == "x"
