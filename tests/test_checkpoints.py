"""Checkpoints of a toy stage: resume exactness, interruption, full disk, divergence."""

import errno
import io
import os
import signal
from pathlib import Path

import pytest
import torch
from toy_training import Do, Toy, fit, same

from callbacks import checkpointing
from callbacks.checkpointing import AtomicCheckpointIO, Checkpoint
from callbacks.not_finite import StopOnNaN
from callbacks.run_record import RunRecord
from callbacks.student_ema import StudentEMA


@pytest.mark.parametrize("start", [0, 1, 4])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_equals_never_interrupted(tmp_path, start, number):
    whole_ema, whole_record = StudentEMA(0.75, start), RunRecord()
    whole, _ = fit(tmp_path, [whole_record, whole_ema])

    before = signal.getsignal(number)
    checkpoint, ema = Checkpoint(tmp_path / "last.ckpt"), StudentEMA(0.75, start)
    kill = Do(5, lambda: os.kill(os.getpid(), number))
    first, trainer = fit(tmp_path, [checkpoint, RunRecord(), ema, kill])
    assert checkpoint.interrupted and trainer.global_step == checkpoint.saved_step == 6
    assert signal.getsignal(number) is before

    ema, record = StudentEMA(0.75, start), RunRecord()
    last = Checkpoint(tmp_path / "last.ckpt")
    second, trainer = fit(tmp_path, [last, record, ema], Toy(), resume=True)
    assert trainer.global_step == 10 and not last.interrupted
    assert first.losses + second.losses == whole.losses
    assert same(second.state_dict(), whole.state_dict())
    assert ema.updates == whole_ema.updates
    assert same(ema.ema_state_dict(), whole_ema.ema_state_dict())
    assert record.summary()["counters"] == whole_record.summary()["counters"]


def test_periodic_checkpoints(tmp_path):
    path = tmp_path / "deep" / "last.ckpt"
    checkpoint = Checkpoint(path, every_steps=4)
    fit(tmp_path, [checkpoint])
    assert checkpoint.saved_step == 8
    assert torch.load(path, weights_only=True)["global_step"] == 8
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    often = Checkpoint(tmp_path / "often.ckpt", every_s=0.0)
    fit(tmp_path, [often])
    assert often.saved_step == 10
    never = Checkpoint(tmp_path / "never.ckpt", every_s=3600)
    fit(tmp_path, [never])
    assert never.saved_step is None and not never.path.exists()


def test_the_last_step_is_saved_if_it_took_long_to_get_there(tmp_path, monkeypatch):
    """What then fails, such as handing on to a full disk, costs no training."""
    monkeypatch.setattr(checkpointing, "LAST_S", 0.0)
    last = Checkpoint(tmp_path / "last.ckpt", every_s=3600)
    fit(tmp_path, [last])
    assert last.saved_step == 10
    assert torch.load(last.path, weights_only=True)["global_step"] == 10


def test_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path, plugin = tmp_path / "last.ckpt", AtomicCheckpointIO()
    plugin.save_checkpoint({"x": torch.arange(1000)}, path)
    before = path.read_bytes()
    opened = Path.open

    class Full(io.FileIO):
        room = 2000

        def write(self, data):
            if self.tell() + len(data) > self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    def open_full(self, mode="r", *rest, **named):
        return Full(self, "w") if mode == "wb" else opened(self, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(OSError, match="the previous one is kept.*free disk space"):
        plugin.save_checkpoint({"x": torch.arange(9000)}, path)
    monkeypatch.undo()
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["last.ckpt"]
    assert torch.equal(plugin.load_checkpoint(path)["x"], torch.arange(1000))


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save({"x": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)
    assert not (tmp_path / "owned").exists()
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "none.ckpt")


def test_divergence_stops_before_weights_are_touched(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoint, module = Checkpoint(path, every_steps=1), Toy(poison_at=7)
    with pytest.raises(ValueError, match=r"step 7: the loss is nan.*last\.ckpt \(step 7\).*Lower"):
        fit(tmp_path, [StopOnNaN(), checkpoint], module)
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] == 7
    assert same(saved["state_dict"], module.state_dict())
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())


def test_infinite_gradient_is_divergence_too(tmp_path):
    class Steep(Toy):
        def training_step(self, batch, batch_idx):
            return (self.student(batch["x"]) * 0).abs().sqrt().sum()  # finite loss, nan gradient

    with pytest.raises(ValueError, match=r"step 0: the gradient's norm is nan.*there is no check"):
        fit(tmp_path, [StopOnNaN(), Checkpoint(tmp_path / "last.ckpt", every_steps=1)], Steep())
    assert not (tmp_path / "last.ckpt").exists()


def test_a_crash_saves_nothing_and_frees_the_signals(tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def crash():
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fit(tmp_path, [Checkpoint(tmp_path / "last.ckpt"), Do(3, crash)])
    assert not (tmp_path / "last.ckpt").exists() and signal.getsignal(signal.SIGINT) is before
