"""The student EMA, the record, the progress bar and the panel, on a toy stage."""

import io
import logging
from collections import Counter

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_training import Toy, fit

from callbacks.checkpointing import AtomicCheckpointIO
from callbacks.progress import Progress
from callbacks.run_record import RunRecord
from callbacks.sample_clips import Panel, SampleClips
from callbacks.student_ema import StudentEMA


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


@pytest.mark.parametrize("content", [b"", b"hello, I am a text", b"PK\x03\x04 no zip", b"\0" * 99])
def test_a_file_of_another_kind_is_no_checkpoint(tmp_path, content):
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.ckpt: damaged, .*; restore a copy, or delete it"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
