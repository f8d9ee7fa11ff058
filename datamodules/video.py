"""The one LightningDataModule: clips, pairs, prompts or videos, by the kind of the shard set.

A batch is

    key, caption   list[str]             info  list[dict]
    latents        [b, F, C, H, W]       float32
    text           [b, L, D]             float32
    trajectory     [b, S, F, C, H, W]    float32
    state          [b, T, 4]             float32
    poses          [b, F, 3, 4]          float32
    intrinsics     [b, F, 4]             float32
    video          [b, T, H, W, c]       uint8

with the fields of the set (or the requested ones) and b the global batch divided by the
number of processes and of micro-batches (`Trainer(accumulate_grad_batches=...)`).
Batch s of a run is a function of (seed, s), whatever these two numbers are: see `order.py`.

The run is one Lightning epoch of `steps` batches: `Trainer(max_epochs=1,
use_distributed_sampler=False)`. Without that flag Lightning would replace the sampler by its own,
which cannot resume; `train_dataloader` raises an error in that case.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from datamodules.loader import (
    Batch,
    ShardDataset,
    StartedLoader,
    as_it_is,
    leave_signals_to_the_parent,
    to_tensor,
)
from datamodules.order import StepBatches
from datamodules.shards.reader import open_shards, require


class VideoDataModule(L.LightningDataModule):
    """Delivers batches 0 .. steps-1 of a shard set; a resumed run continues exactly."""

    def __init__(
        self,
        shards: Path | str,
        batch: int,
        steps: int,
        seed: int,
        micro_batches: int = 1,
        workers: int = 0,
        fields: list[str] | None = None,
        cache_bytes: int = 2**29,
        timeout_s: float = 600.0,
    ) -> None:
        """Open and check the set; reads no sample yet.

        Args:
            shards: folder of the shard set.
            batch: samples per step, over all processes.
            steps: batches of the whole run.
            seed: of the sample order.
            micro_batches: per batch, of equal size.
            workers: loader processes; 0 reads in the training process. Never changes a batch.
            fields: arrays to load; None for all.
            cache_bytes: a set up to this size is kept in memory, per process.
            timeout_s: seconds to wait for a batch of loader processes; 0: no limit.

        Raises:
            FileNotFoundError, ValueError: as `ShardReader`; or a field the set lacks; or an
                invalid number.
        """
        super().__init__()
        self.shards = open_shards(shards)
        self.manifest: dict[str, Any] = self.shards.manifest
        missing = set(fields or ()) - set(self.shards.fields)
        if missing:
            raise ValueError(
                f"{self.shards.folder / 'manifest.json'} has no fields {sorted(missing)}; "
                f"it has {', '.join(self.shards.fields)}"
            )
        if batch < 1 or steps < 0 or workers < 0 or seed < 0:
            raise ValueError(
                f"batch={batch}, steps={steps}, workers={workers}, seed={seed}: "
                "batch must be positive and the others not negative"
            )
        if micro_batches < 1 or batch % micro_batches:
            raise ValueError(f"micro_batches={micro_batches}: must divide the batch of {batch}")
        self.micro_batches = micro_batches
        self.fields = tuple(fields or self.shards.fields)
        self.batch, self.steps, self.seed, self.workers = batch, steps, seed, workers
        self.cache_bytes, self.timeout_s = cache_bytes, timeout_s
        self._consumed = 0  # full batches over all processes; set when a checkpoint is loaded
        self._counted_in = micro_batches  # of the run that wrote the checkpoint
        self._dataset: ShardDataset | None = None

    @property
    def negative(self) -> torch.Tensor | None:
        """[L, D] float32 text embedding of the negative prompt, where the set has one."""
        stored = self.shards.negative
        return None if stored is None else to_tensor(stored)

    def require(self, **expected: Any) -> None:
        """Check the set early, e.g. `require(kind="clips", latents=(None, 16, 4, 4))`."""
        require(self.shards, **expected)

    def setup(self, stage: str) -> None:
        """Read the set into memory if it is small (Lightning calls this in every process)."""
        if self._dataset is None:
            self._dataset = ShardDataset(self.shards, self.fields, self.cache_bytes)

    def train_dataloader(self) -> DataLoader[Batch]:
        """The loader of the remaining batches; its length is the whole run's.

        Raises:
            ValueError: the number of processes does not divide the batch, or the trainer would
                replace the sampler.
        """
        rank, world = 0, 1
        if self.trainer is not None:
            rank, world = self.trainer.global_rank, self.trainer.world_size
            if world > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
                raise ValueError(
                    "Lightning would replace the resumable order by its own sampler: "
                    "use Trainer(use_distributed_sampler=False)"
                )
        if self._counted_in != self.micro_batches:
            self._recount()
        self.setup("fit")
        assert self._dataset is not None
        order = StepBatches(  # micro-batches are consecutive, as batches are
            count=len(self._dataset),
            batch=self.batch // self.micro_batches,
            steps=self.steps * self.micro_batches,
            seed=self.seed,
            rank=rank,
            world=world,
            start=self._consumed * self.micro_batches,
        )
        return StartedLoader(
            self._dataset,
            batch_sampler=order,  # type: ignore[arg-type]
            num_workers=self.workers,
            timeout=self.timeout_s if self.workers else 0,
            worker_init_fn=leave_signals_to_the_parent,
            collate_fn=as_it_is,
            pin_memory=torch.cuda.is_available(),
        )

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move only the tensors; Lightning would also traverse every caption and attribute."""
        tensors = {name: x for name, x in batch.items() if isinstance(x, torch.Tensor)}
        return batch | {name: x.to(device, non_blocking=True) for name, x in tensors.items()}

    def state_dict(self) -> dict[str, Any]:
        """Position of the run, equal on every rank: full batches processed by the trainer.

        The trainer's own count, since a loader's is ahead by what it prefetches.
        """
        consumed = self._consumed
        if self.trainer is not None:
            done = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed
            consumed, rest = divmod(done, self.micro_batches)
            assert not rest, "a checkpoint inside a batch would lose accumulated gradients"
        return {"consumed": consumed, "parts": self.micro_batches, **self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume after the batches of `state_dict`, with any number of workers and micro-batches.

        Raises:
            ValueError: the checkpoint was made with another seed, batch size or shard set.
        """
        for name, value in self._identity().items():
            if state_dict[name] != value:
                raise ValueError(
                    f"the checkpoint was made with data {name}={state_dict[name]!r}, this run has "
                    f"{value!r} ({self.shards.folder}): restore it, or start a new run"
                )
        self._consumed = int(state_dict["consumed"])
        self._counted_in = int(state_dict["parts"])

    def _recount(self) -> None:
        """Lightning counts micro-batches: convert the count of a checkpoint with another number."""
        current = self.trainer.fit_loop.epoch_loop.batch_progress.current
        unfinished = current.ready - current.completed  # 1 in what `on_train_batch_end` saved
        current.ready = current.started = current.processed = self._consumed * self.micro_batches
        current.completed = current.ready - unfinished

    def _identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "batch": self.batch, "shards": self.shards.fingerprint}
