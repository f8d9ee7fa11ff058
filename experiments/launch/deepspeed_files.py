"""The files of a ZeRO checkpoint: synced on write, read without unpickling."""

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
"""The classes in DeepSpeed's files other than tensors and plain values."""


class SafeFiles(CheckpointEngine):
    """Replaces DeepSpeed's own engine, which unpickles its files."""

    def __init__(self) -> None:
        super().__init__(None)

    def create(self, info: CheckpointCommitInfo) -> None:
        """Nothing to do: the folder exists."""

    def save(self, state_dict: Any, path: str) -> None:
        """Write and fsync one file."""
        with open(path, "wb") as file:
            torch.save(state_dict, file)
            file.flush()
            os.fsync(file.fileno())

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file.

        Raises:
            ValueError: it is damaged, or holds other classes.
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
        """Nothing to do: every file is synced."""
        return True
