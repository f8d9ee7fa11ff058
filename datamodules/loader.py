"""Batches of a shard set, read in the training process or in processes of a loader."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.shards.reader import ShardReader
from datamodules.signals import STOP

Batch = dict[str, Any]


class ShardDataset(Dataset[Batch]):
    """Batches of a shard set by sample numbers.

    A set that takes at most `cache_bytes` as stored is decoded and hashed once, into memory;
    a larger one is read by seeking, sample by sample.
    """

    def __init__(self, shards: ShardReader, fields: Sequence[str], cache_bytes: int) -> None:
        self.shards, self.fields = shards, tuple(fields)
        self._infos: list[dict[str, Any]] = []
        self._arrays: dict[str, np.ndarray] = {}
        if self._decoded_bytes() <= cache_bytes:
            self._fill_cache()

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index]).tensors()

    def __getitems__(self, indices: list[int]) -> StoredBatch:
        """The collated batch of `indices` (torch's loader calls this with a whole batch)."""
        if self._infos:
            samples = [self._infos[index] for index in indices]
            arrays = {name: self._arrays[name][indices] for name in self.fields}
        else:
            samples = [self.shards.read(index, self.fields) for index in indices]
            arrays = {name: np.stack([s[name] for s in samples]) for name in self.fields}
        about = {name: [s[name] for s in samples] for name in ("key", "caption", "info")}
        return StoredBatch(about, arrays)

    def _decoded_bytes(self) -> int:
        per_sample = 0
        for name in self.fields:
            entry = self.shards.manifest["fields"][name]
            per_sample += int(np.prod(entry["shape"])) * np.dtype(entry["dtype"]).itemsize
        return per_sample * len(self.shards)

    def _fill_cache(self) -> None:
        for name in self.fields:
            entry = self.shards.manifest["fields"][name]
            self._arrays[name] = np.empty((len(self.shards), *entry["shape"]), entry["dtype"])
        for index, sample in enumerate(self.shards.read_all(self.fields)):
            for name in self.fields:
                self._arrays[name][index] = sample.pop(name)
            self._infos.append(sample)


@dataclass
class StoredBatch:
    """A batch in the form and precision that it is stored in.

    Loader processes send it through a pipe. Tensors would go through /dev/shm instead, where a
    container has 64 MB unless told otherwise; a process that cannot allocate there waits for ever.
    """

    about: Batch
    arrays: dict[str, np.ndarray]

    def tensors(self) -> Batch:
        """The batch for training."""
        return self.about | {name: to_tensor(array) for name, array in self.arrays.items()}

    def pin_memory(self) -> Batch:
        """The same in page-locked memory; torch's loader calls this in a thread of its own."""
        tensors = {name: to_tensor(array).pin_memory() for name, array in self.arrays.items()}
        return self.about | tensors


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Floats as float32 (half precision is for storage only), anything else as it is."""
    tensor = torch.from_numpy(array)
    return tensor.float() if tensor.is_floating_point() else tensor


def as_it_is(batch: StoredBatch) -> StoredBatch:
    return batch


def leave_signals_to_the_parent(worker: int) -> None:
    """Ignore signals in loader processes: one that ends would fail the step being saved."""
    for number in (*STOP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


class StartedLoader(DataLoader[Batch]):
    """A loader that starts at the right batch and declares itself resumable to Lightning.

    Without the two methods of a state Lightning warns at every resume; the actual state is the
    DataModule's, which counts trained batches and not prefetched ones.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Batches of tensors.

        Raises:
            TimeoutError: the loader's processes deliver nothing.
            ChildProcessError: one of them was killed.
        """
        batches = super().__iter__()
        try:
            for batch in batches:
                yield batch.tensors() if isinstance(batch, StoredBatch) else batch
        except RuntimeError as error:
            raise self._explained(error) from error
        finally:
            if self.num_workers:
                batches._shutdown_workers()
                for worker in batches._workers:  # one that is stuck would be waited for at exit
                    worker.kill()

    def _explained(self, error: RuntimeError) -> Exception:
        folder = self.dataset.shards.folder  # type: ignore[attr-defined]
        if "timed out" in str(error):
            return TimeoutError(
                f"{folder}: no batch for {self.timeout:g} s (launch.loader_timeout_s) from"
                f" {self.num_workers} loader processes: the disk stalls or is very slow; see if it"
                " answers, copy the shards to a faster one, or raise launch.loader_timeout_s"
            )
        if "DataLoader worker" in str(error):
            return ChildProcessError(
                f"{folder}: a loader process ended ({' '.join(str(error).split())}); often memory"
                " ran out: give the machine more, or set launch.workers lower (0 reads in the"
                " training process)"
            )
        return error

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert not state_dict
