"""Callbacks around a toy stage: resume exactness, interruption, full disk, divergence, panels."""

import errno
import io
import logging
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from callbacks import checkpointing
from callbacks.checkpointing import AtomicCheckpointIO, Checkpoint, StopOnNaN
from callbacks.progress import Progress
from callbacks.run_record import RunRecord
from callbacks.sample_clips import Panel, SampleClips
from callbacks.student_ema import StudentEMA


class Toy(LightningModule):
    """A student that moves on even steps, and a teacher that is asked twice."""

    def __init__(self, poison_at: int | None = None, always: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Linear(3, 3)
        self.critic = nn.Linear(3, 3)
        self.__dict__["teacher"] = nn.Linear(3, 3).requires_grad_(False)
        self.poison_at, self.always = poison_at, always
        self.student_updated = True
        self.losses: list[float] = []

    def networks(self):
        return {"student": self.student, "critic": self.critic, "teacher": self.teacher}

    def training_step(self, batch, batch_idx):
        self.student_updated = self.always or self.global_step % 2 == 0
        network = self.student if self.student_updated else self.critic
        target = 0.5 * (self.teacher(batch["x"]) + self.teacher(-batch["x"]))
        loss = (network(batch["x"]) - target).square().mean()
        if self.global_step == self.poison_at:
            loss = loss * float("nan")
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW([*self.student.parameters(), *self.critic.parameters()], lr=0.1)

    def sample(self, text, keys):
        mean = self.student.weight.detach().mean()
        return torch.zeros(len(keys), 4, 1, 8, 8) + mean


class Batches(LightningDataModule):
    """Batch number i is a function of i; the position is part of the checkpoint."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps, self.first = steps, 0

    def train_dataloader(self):
        def batch(number):
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
            return {"key": [f"{number}/{i}" for i in range(4)], "x": x}

        return _Numbered([batch(number) for number in range(self.first, self.steps)])

    def state_dict(self):
        return {"position": self.trainer.global_step}

    def load_state_dict(self, state_dict):
        self.first = state_dict["position"]


class _Numbered(list):
    """An iterable Lightning takes as a loader."""


class Do(Callback):
    """Runs a function after step number `step`."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.action()


def fit(folder: Path, callbacks, module=None, steps=10, resume=False, data=None, **settings):
    module = module or Toy()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=1,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(one, Progress) for one in callbacks),
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        default_root_dir=folder,
        **{"logger": False} | settings,
    )
    last = folder / "last.ckpt" if resume else None
    trainer.fit(module, datamodule=data or Batches(steps), ckpt_path=last)
    return module, trainer


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


# -- the average ---------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 3])
def test_average_follows_the_student_alone(tmp_path, start):
    seen: list[torch.Tensor] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            if pl_module.student_updated:
                seen.append(pl_module.student.weight.detach().clone())

    ema = StudentEMA(decay=0.75, start_step=start)
    initial = Toy().student.weight.detach().clone()
    module, _ = fit(tmp_path, [Watch(), ema])
    assert ema.updates == len(seen) == 5
    expected, rest = (initial, seen) if start == 0 else (seen[start - 1], seen[start:])
    for weight in rest:
        expected = 0.75 * expected + 0.25 * weight
    torch.testing.assert_close(ema.ema_state_dict()["weight"], expected)
    own = module.student.weight.detach().clone()
    with ema.swapped(module):
        torch.testing.assert_close(module.student.weight.detach(), expected)
    assert torch.equal(module.student.weight, own) and module.student.weight.requires_grad


def test_average_waits_for_accumulated_gradients(tmp_path):
    ema = StudentEMA(decay=0.5)
    fit(tmp_path, [ema], Toy(always=True), steps=5, accumulate_grad_batches=5)
    assert ema.updates == 1


def test_average_before_its_start_is_the_student(tmp_path):
    ema = StudentEMA(decay=0.5, start_step=100)
    module, _ = fit(tmp_path, [ema])
    own = module.student.weight.detach().clone()
    assert ema.ema_state_dict() is None
    with ema.swapped(module):
        assert torch.equal(module.student.weight, own)


# -- checkpoints ---------------------------------------------------------------------------------


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

    with pytest.raises(ValueError, match=r"step 0: the gradient's norm is nan; there is no check"):
        fit(tmp_path, [StopOnNaN(), Checkpoint(tmp_path / "last.ckpt", every_steps=1)], Steep())
    assert not (tmp_path / "last.ckpt").exists()


def test_a_crash_saves_nothing_and_frees_the_signals(tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def crash():
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fit(tmp_path, [Checkpoint(tmp_path / "last.ckpt"), Do(3, crash)])
    assert not (tmp_path / "last.ckpt").exists() and signal.getsignal(signal.SIGINT) is before


# -- the record and the bar ----------------------------------------------------------------------


def test_record_counts_passes(tmp_path):
    class Asks(Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            pl_module.student(torch.ones(1, 3))

    record = RunRecord()
    module, _ = fit(tmp_path, [record, Asks()])
    summary = record.summary()
    assert summary["counters"] == {
        "batches": 10,
        "samples": 40,
        "student_forwards": 5,
        "student_backwards": 5,
        "critic_forwards": 5,
        "critic_backwards": 5,
        "teacher_forwards": 20,
    }
    assert summary["fit_s"] > 0 and summary["peak_memory_bytes"] > 10_000_000
    assert not any(network._forward_hooks for network in module.networks().values())
    assert isinstance(summary["counters"], dict) and not isinstance(summary["counters"], Counter)


def test_progress_reports_and_logs(tmp_path, caplog):
    heard: list[tuple[int, int, str]] = []
    with caplog.at_level(logging.INFO, logger="callbacks.progress"):
        bar = Progress(
            lambda *told: heard.append(told), every_s=0.0, console=Console(file=io.StringIO())
        )
        module, _ = fit(tmp_path, [bar])
    assert heard[0][:2] == (1, 10) and heard[-1] == (10, 10, f"loss {module.losses[-1]:.4f}")
    assert "step 10/10" in caplog.text and "s left" in caplog.text


def test_progress_draws_on_a_terminal(tmp_path):
    drawn = io.StringIO()
    fit(tmp_path, [Progress(console=Console(file=drawn, force_terminal=True, width=100))])
    assert "10/10" in drawn.getvalue()


# -- the panel -----------------------------------------------------------------------------------


class Gray:
    """Latents are pixels in -1..1."""

    def decode(self, latents):
        return ((latents + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(2, -1)


def test_panel_in_tensorboard_and_in_files(tmp_path):
    videos = torch.arange(2 * 4 * 64).remainder(256).to(torch.uint8).view(2, 4, 8, 8, 1)
    panel = Panel(torch.zeros(2, 5, 3), ["a", "b"], ["a seven moving left", "still"], videos)
    logger = TensorBoardLogger(tmp_path, name="tb", version="")
    shown = SampleClips(panel, Gray(), tmp_path, every=4, fps=8, ema=StudentEMA(0.5))
    module, _ = fit(tmp_path, [shown], logger=logger)
    assert sorted(file.name for file in (tmp_path / "samples").iterdir()) == [
        f"step-{step:07d}.{kind}" for step in (4, 8, 10) for kind in ("gif", "png")
    ]
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"images": 0}).Reload()
    clips = events.Images("samples/clips")
    assert [event.step for event in clips] == [4, 8, 10], "a run shorter than `every` has one, too"
    assert clips[-1].encoded_image_string == (tmp_path / "samples/step-0000010.gif").read_bytes()
    moving = Image.open(io.BytesIO(clips[-1].encoded_image_string))
    assert (moving.n_frames, moving.info["duration"]) == (4, 120)  # GIF counts hundredths
    assert moving.size == (clips[-1].width, clips[-1].height)
    sheet = np.asarray(Image.open(tmp_path / "samples/step-0000010.png"))
    scale = sheet.shape[1] // 32
    assert np.array_equal(sheet[: 8 * scale : scale, : 8 * scale : scale, 0], videos[0, 0, ..., 0])
    caption = sheet[16 * scale : 16 * scale + 14]
    assert (caption < 128).any()
    generated = sheet[8 * scale : 16 * scale]
    assert len(np.unique(generated)) == 1


def test_panel_samples_the_average(tmp_path):
    seen = []

    class Notes(Toy):
        def sample(self, text, keys):
            seen.append(self.student.weight.detach().clone())
            return super().sample(text, keys)

    ema = StudentEMA(decay=0.5)
    panel = Panel(torch.zeros(1, 5, 3), ["a"], ["x"], torch.zeros(1, 4, 8, 8, 1, dtype=torch.uint8))
    shown = SampleClips(panel, Gray(), tmp_path, every=10, fps=8, ema=ema)
    module, _ = fit(tmp_path, [ema, shown], Notes())
    assert torch.equal(seen[0], ema.ema_state_dict()["weight"])
    assert not torch.equal(seen[0], module.student.weight)
    with pytest.raises(ValueError, match="every"):
        SampleClips(panel, Gray(), tmp_path, every=0, fps=8)
