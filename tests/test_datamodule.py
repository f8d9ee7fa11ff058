"""The DataModule under a real Lightning Trainer: what each step sees, and after interruptions."""

from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.order import rank_batch
from datamodules.shards.reader import ShardWriter
from datamodules.video import VideoDataModule

COUNT, BATCH, STEPS, SEED = 22, 4, 13, 5  # 2.4 epochs; no batch divides an epoch


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    negative = np.ones((3, 2), np.float32)
    with ShardWriter(folder, "clips", about={}, negative=negative, samples_per_shard=5) as writer:
        for i in range(COUNT):
            arrays = {
                "latents": np.full((2, 4, 1, 1), i, np.float16),
                "text": np.full((3, 2), i, np.float32),
                "video": np.full((2, 8, 8, 1), i, np.uint8),
            }
            for varied in ("latents", "video"):  # a constant clip is refused
                arrays[varied][-1, -1] += 1
            writer.write(f"clip-{i}", arrays, {"caption": f"number {i}", "attributes": {"n": i}})
    return folder


class Stop(Exception):
    """Stands for a kill between two steps."""


class Recorder(L.LightningModule):
    """Remembers the keys of every step; stops before step `stop`."""

    def __init__(self, stop=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop, self.seen, self.steps = stop, [], []

    def training_step(self, batch, batch_idx):
        if batch_idx == self.stop:
            raise Stop
        self.seen.append(batch["key"])
        self.steps.append(batch_idx)
        return (self.weight - batch["latents"].mean()) ** 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def data(shards, **changes):
    numbers = {"batch": BATCH, "steps": STEPS, "seed": SEED, "workers": 0} | changes
    return VideoDataModule(shards, **numbers)


def fit(folder, shards, stop=None, checkpoint=None, every=1, **changes):
    module = Recorder(stop)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=[ModelCheckpoint(folder, "last", every_n_train_steps=every, save_top_k=1,
                                   enable_version_counter=False)],
    )  # fmt: skip
    try:
        trainer.fit(module, data(shards, **changes), ckpt_path=checkpoint, weights_only=True)
    except Stop:
        assert stop is not None
    return module, trainer


def expected(first=0):
    return [
        [f"clip-{i}" for i in rank_batch(s, count=COUNT, batch=BATCH, seed=SEED)]
        for s in range(first, STEPS)
    ]


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_sees_its_steps_in_order(tmp_path, shards, workers, cache_bytes):
    module, trainer = fit(tmp_path, shards, workers=workers, cache_bytes=cache_bytes)
    assert module.seen == expected()
    assert module.steps == list(range(STEPS))
    assert trainer.global_step == STEPS


@pytest.mark.parametrize(("stop", "every"), [(1, 1), (6, 1), (6, 4), (12, 1), (12, 5)])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 2), (0, 2), (2, 0)])
def test_a_resumed_run_goes_on_at_the_exact_next_sample(
    tmp_path, shards, recwarn, stop, every, before, after
):
    first, _ = fit(tmp_path, shards, stop, every=every, workers=before)
    assert first.seen == expected()[:stop]
    saved = stop - stop % every
    second, trainer = fit(
        tmp_path, shards, checkpoint=tmp_path / "last.ckpt", every=every, workers=after
    )
    assert not [warning for warning in recwarn if "not resumable" in str(warning.message)]
    assert second.seen == expected(saved)
    assert second.steps == list(range(saved, STEPS))
    assert trainer.global_step == STEPS
    whole, _ = fit(tmp_path / "whole", shards)
    assert torch.equal(second.weight, whole.weight)


def test_a_run_can_be_interrupted_again_and_again(tmp_path, shards):
    seen, checkpoint = [], None
    for stop in (3, 4, 9, None):
        module, _ = fit(tmp_path, shards, stop, checkpoint)
        seen += module.seen
        checkpoint = tmp_path / "last.ckpt"
    assert seen == expected()


def test_a_finished_run_resumed_sees_nothing_more(tmp_path, shards):
    fit(tmp_path, shards)
    module, _ = fit(tmp_path, shards, checkpoint=tmp_path / "last.ckpt")
    assert module.seen == []


@pytest.mark.parametrize("change", [{"seed": 6}, {"batch": 2}])
def test_a_checkpoint_of_another_order_is_refused(tmp_path, shards, change):
    fit(tmp_path, shards, stop=3)
    with pytest.raises(ValueError, match=f"data {next(iter(change))}=.*restore it, or start a new"):
        fit(tmp_path, shards, checkpoint=tmp_path / "last.ckpt", **change)


def trainer_of(rank, world, replaces=False):
    connector = SimpleNamespace(use_distributed_sampler=replaces)
    return SimpleNamespace(global_rank=rank, world_size=world, _accelerator_connector=connector)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_dividing_number_of_processes_continues_the_same_run(shards, world):
    """The state is global: a run saved by one process goes on with several, and the reverse."""
    parts = []
    for rank in range(world):
        module = data(shards)
        module.load_state_dict(data(shards).state_dict() | {"consumed": 6})
        module.trainer = trainer_of(rank, world)
        parts.append([batch["key"] for batch in module.train_dataloader()])
    assert [sum(step, []) for step in zip(*parts, strict=True)] == expected(6)


def test_unfit_numbers_of_processes_are_refused(shards):
    module = data(shards)
    module.trainer = trainer_of(0, 3)
    with pytest.raises(ValueError, match="batch of 4 cannot be split over 3 processes"):
        module.train_dataloader()
    module.trainer = trainer_of(0, 2, replaces=True)
    with pytest.raises(ValueError, match=r"use Trainer\(use_distributed_sampler=False\)"):
        module.train_dataloader()


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_what_a_batch_holds(shards, cache_bytes):
    module = data(shards, cache_bytes=cache_bytes)
    batch = next(iter(module.train_dataloader()))
    numbers = [info["attributes"]["n"] for info in batch["info"]]
    assert batch["key"] == [f"clip-{n}" for n in numbers]
    assert batch["caption"] == [f"number {n}" for n in numbers]
    assert batch["latents"].shape == (BATCH, 2, 4, 1, 1)
    assert batch["latents"].dtype == batch["text"].dtype == torch.float32
    assert batch["video"].dtype == torch.uint8
    for name in ("latents", "text", "video"):
        flat = batch[name][:, 0].flatten(1)
        assert torch.equal(flat, torch.tensor(numbers).to(flat)[:, None].expand_as(flat))
    assert torch.equal(module.negative, torch.ones(3, 2))
    assert len(module.train_dataloader()) == STEPS


def test_batches_are_the_receivers_own(shards):
    """A stage that writes into a batch must not change what the next epoch sees."""
    module = data(shards)
    for batch in module.train_dataloader():
        batch["latents"].zero_()
        batch["text"].zero_()
    fresh = next(iter(module.train_dataloader()))
    assert fresh["text"].abs().sum() > 0


def test_only_the_fields_asked_for_are_loaded(shards):
    batch = next(iter(data(shards, fields=["text"]).train_dataloader()))
    assert set(batch) == {"key", "caption", "info", "text"}
    with pytest.raises(
        ValueError, match=r"no fields \['trajectory'\]; it has latents, text, video"
    ):
        data(shards, fields=["text", "trajectory"])


def test_bad_numbers_and_unfit_sets_are_refused_at_once(tmp_path, shards):
    for change in ({"batch": 0}, {"steps": -1}, {"workers": -1}, {"seed": -1}):
        with pytest.raises(ValueError, match="batch must be positive"):
            data(shards, **change)
    with pytest.raises(FileNotFoundError, match=r"manifest\.json is missing"):
        data(tmp_path)
    with pytest.raises(ValueError, match=r"says latents \[2, 4, 1, 1\], .*\[2, 16, 4, 4\]"):
        data(shards).require(kind="clips", latents=(2, 16, 4, 4))


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_sample_is_named(tmp_path, cache_bytes, workers):
    with ShardWriter(tmp_path, "prompts", about={}) as writer:
        for i in range(3):
            writer.write(f"p{i}", {"text": np.zeros((2, 2), np.float32)}, {"caption": "x"})
    tar = tmp_path / "000000.tar"
    whole = tar.read_bytes()
    at = whole.rindex(b"\x93NUMPY")
    tar.write_bytes(whole[:at] + b"broken" + whole[at + 6 :])
    module = VideoDataModule(
        tmp_path, batch=3, steps=1, seed=0, workers=workers, cache_bytes=cache_bytes
    )
    with pytest.raises(ValueError, match=r"'p2' in .*000000\.tar, field text is corrupt"):
        list(module.train_dataloader())
