"""The files of a ZeRO checkpoint: synced when written, tensors and plain values when read."""

import os
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import (
    CheckpointCommitInfo,
    CheckpointEngine,
)
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

_KNOWN = [LossScaler, ZeroStageEnum, fragment_address]
"""What DeepSpeed puts into its files beside tensors and plain values."""


class SafeFiles(CheckpointEngine):
    """Stands in for DeepSpeed's own, which unpickles whatever a file holds."""

    def __init__(self) -> None:
        super().__init__(None)

    def create(self, info: CheckpointCommitInfo) -> None:
        """Nothing: the folder is there."""

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file and wait until it is on the disk."""
        with open(path, "wb") as file:
            torch.save(state_dict, file)
            file.flush()
            os.fsync(file.fileno())

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file.

        Raises:
            ValueError: it is damaged, or holds what no checkpoint of ours does.
        """
        try:
            with torch.serialization.safe_globals(_KNOWN):
                return torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:
            raise ValueError(
                f"{path}: not readable as part of a checkpoint ({' '.join(str(error).split())});"
                " restore a copy of the folder, or delete it to start this run again"
            ) from error

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Nothing more to do: every file is synced."""
        return True
