"""Gradient accumulation is exact: same samples, noise and weights for any micro-batch size."""

import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer
from minimal import batch, network, stage

from callbacks.checkpointing import AtomicCheckpointIO, Checkpoint
from callbacks.run_record import RunRecord
from callbacks.student_ema import StudentEMA
from datamodules.order import StepBatches, rank_batch
from datamodules.shards.reader import ShardWriter
from datamodules.video import VideoDataModule
from experiments.launch.hardware import Launch, micro_batches_of
from lightning_modules.asymmetric_dmd import AsymmetricDMD
from lightning_modules.causal_cd import CausalCD
from lightning_modules.teacher_forcing import TeacherForcing

pytestmark = pytest.mark.numeric

BATCH, STEPS = 4, 7  # Stage 3: the student's turn, five of the critic's, the student's
KINDS = {
    TeacherForcing: {"text_dropout": 0.3, "intervals": 4, "guidance": 1.0},
    CausalCD: {
        "intervals": 4, "solver": "euler", "guidance": 2.0, "decay": 0.9, "terminal_pair": True
    },
    AsymmetricDMD: {
        "few_steps": 2, "first_few_steps": 4, "guidance": 2.0, "critic_learning_rate": 2e-3,
        "critic_steps": 5, "t_min": 0.02, "t_max": 0.98,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("shards"), batch(10)
    with ShardWriter(folder, "clips", about={}, negative=data["text"][0].numpy()) as to:
        for row, key in enumerate(data["key"]):
            arrays = {name: data[name][row].numpy() for name in ("latents", "text")}
            to.write(key, arrays, {"caption": key})
    return folder


class StopAt(Checkpoint):
    """Asks the run to stop while batch number `index` is at work, as a signal would."""

    def __init__(self, path, index):
        super().__init__(path)
        self.index = index

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.index:
            self._signal = signal.SIGTERM


def trained(kind, shards, parts, *callbacks, resume=None):
    roles = {AsymmetricDMD: {"teacher": network(2), "critic": network(3)},
             CausalCD: {"teacher": network(2)}}  # fmt: skip
    module = stage(kind, **KINDS[kind], **roles.get(kind, {}))
    data = VideoDataModule(
        shards, batch=BATCH, steps=STEPS, seed=3, micro_batches=parts, fields=list(kind.fields)
    )
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=STEPS, max_epochs=1, gradient_clip_val=0.1,
        accumulate_grad_batches=parts, callbacks=list(callbacks), plugins=[AtomicCheckpointIO()],
        logger=False, use_distributed_sampler=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module, trainer.global_step


def weights(module, ema):
    """Everything that a step moves."""
    found = dict(module.named_parameters()) | {f"ema.{k}": v for k, v in ema.items()}
    if isinstance(module, CausalCD):
        found |= {f"target.{k}": v for k, v in module.target.state_dict().items()}
    return {name: value.detach().clone() for name, value in found.items()}


def assert_near(found, wanted, start):
    """Equal but for the rounding of sums: a thousandth of what training has moved."""
    for name, value in wanted.items():
        scale = (value - start[name]).abs().max() if name in start else value.abs().max()
        torch.testing.assert_close(found[name], value, rtol=0, atol=float(2e-3 * scale + 1e-7))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_batch_in_four_parts_is_a_batch_of_four(shards, kind):
    start = dict(stage(TeacherForcing, **KINDS[TeacherForcing]).student.named_parameters())
    start = {f"student.{name}": value.detach() for name, value in start.items()}
    runs = {}
    for parts in (1, 4):
        average, record = StudentEMA(0.5), RunRecord()
        module, steps = trained(kind, shards, parts, average, record)
        runs[parts] = weights(module, average.ema_state_dict())
        counters = record.summary()["counters"]
        assert steps == counters["batches"] == STEPS and counters["samples"] == BATCH * STEPS
    assert any((runs[1][name] - value).abs().max() > 1e-3 for name, value in start.items())
    assert_near(runs[4], runs[1], start)


@pytest.mark.parametrize("after", [4, 2, 1])
def test_stopped_inside_a_batch_and_resumed_in_other_parts(tmp_path, shards, after):
    """The whole batch is finished and saved first; the rest may come in any number of parts."""
    average = StudentEMA(0.5)
    whole, _ = trained(AsymmetricDMD, shards, 4, average)
    first, last = StudentEMA(0.5), tmp_path / "last.ckpt"
    _, steps = trained(AsymmetricDMD, shards, 4, first, StopAt(last, index=9))
    assert steps == 3, "parts 8 to 11 are the third batch"
    rest = StudentEMA(0.5)
    module, steps = trained(AsymmetricDMD, shards, after, rest, resume=last)
    assert steps == STEPS
    found = weights(module, rest.ema_state_dict())
    wanted = weights(whole, average.ema_state_dict())
    if after == 4:
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    start = dict(network(1).named_parameters())
    assert_near(found, wanted, {f"student.{name}": value.detach() for name, value in start.items()})


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 30))
def test_parts_and_ranks_share_a_batch_out(parts, world, share, count):
    total = parts * world * share
    numbers = {"count": count, "batch": total // parts, "steps": 3 * parts, "seed": 1}
    by_rank = [list(StepBatches(**numbers, rank=rank, world=world)) for rank in range(world)]
    for step in range(3):
        taken = [
            sample
            for part in range(step * parts, (step + 1) * parts)
            for rank in range(world)
            for sample in by_rank[rank][part]
        ]
        assert taken == rank_batch(step, count=count, batch=total, seed=1).tolist()


@pytest.mark.parametrize(
    ("batch", "devices", "limit", "parts"),
    [(64, 64, 1, 1), (64, 8, 1, 8), (64, 1, 1, 64), (64, 4, 4, 4), (64, 4, 0, 1), (12, 2, 4, 2),
     (14, 2, 4, 7), (64, 2, 99, 1)],
)  # fmt: skip
def test_parts_follow_from_the_devices(batch, devices, limit, parts):
    assert micro_batches_of(batch, Launch(devices=devices, batch_per_device=limit)) == parts


@pytest.mark.parametrize("devices", [6, 128])
def test_devices_that_cannot_share_a_batch(devices):
    with pytest.raises(ValueError, match=r"launch.devices: .* batch of 64 .*\[1, 2, 4, 8"):
        micro_batches_of(64, Launch(devices=devices))


def test_parts_must_divide_the_batch(shards):
    with pytest.raises(ValueError, match="micro_batches=3: must divide the batch of 4"):
        VideoDataModule(shards, batch=BATCH, steps=STEPS, seed=3, micro_batches=3)
