"""DeepSpeed's ZeRO as a Lightning strategy that also runs on CPUs and never casts a weight.

One engine holds all trained networks, with one optimizer that updates the active parameter groups
only (``training/gated_adamw.py``). Differences to Lightning's own strategy, each tested in
tests/test_deepspeed.py:

* a CPU path (gloo), chosen by the accelerator;
* bf16 is autocast over fp32 weights, gradients and gradient reduction;
* the loss is divided by the number of micro-batches once: Lightning and DeepSpeed both would;
* checkpoints are replaced atomically, synced, and read without unpickling;
* with ZeRO-3 frozen networks are sharded too, and networks that are handed on are gathered on rank
  0 after training.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import deepspeed
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn

from callbacks.checkpoint_folder import replaced
from callbacks.checkpointing import stopped
from callbacks.not_finite import not_finite
from experiments.launch.deepspeed_files import SafeFiles

SHAPE = "shape.json"
"""The file in a checkpoint that says how it was sharded."""


class ZeroStrategy(DeepSpeedStrategy):
    """ZeRO of one stage.

    Args:
        stage: 1 shards the optimizer's state over the ranks, 2 gradients too, 3 weights too.
        autocast: compute in bfloat16.
        timeout: how long a rank waits for the others.
    """

    strategy_name = "zero"

    def __init__(self, stage: int, autocast: bool, timeout: timedelta) -> None:
        warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # at every call
        super().__init__(stage=stage, timeout=timeout, logging_batch_size_per_gpu=1)
        # A small parameter kept whole would have to be refreshed after every write to the shards.
        self.config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        if autocast:
            self.config["torch_autocast"] = {
                "enabled": True,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],  # gradient reduction stays fp32
            }
        self._frozen: list[Any] = []  # engines of frozen networks
        self._kept: list[nn.Module] = []

    # -- on CPUs -----------------------------------------------------------------------------

    @property
    def _on_cpu(self) -> bool:
        return isinstance(self.accelerator, CPUAccelerator)

    @property
    def root_device(self) -> torch.device:
        """DeepSpeed requires a device index; tensors are on the plain CPU all the same."""
        return torch.device("cpu", self.local_rank) if self._on_cpu else super().root_device

    def setup_environment(self) -> None:
        """Without the refusal of CPUs."""
        if self._on_cpu:
            super(DeepSpeedStrategy, self).setup_environment()
        else:
            super().setup_environment()

    def setup_distributed(self) -> None:
        """Over gloo on CPUs, each rank with a device index of its own."""
        if self._on_cpu:
            self.parallel_devices = [
                torch.device("cpu", index) for index in range(len(self.parallel_devices))
            ]
            self._process_group_backend = "gloo"
        super().setup_distributed()

    # -- steps -------------------------------------------------------------------------------

    def setup(self, trainer: Any) -> None:
        """Build the engine, with checkpoint files of our kind."""
        super().setup(trainer)
        self.deepspeed_engine.checkpoint_engine = SafeFiles()
        self._kept = [self.lightning_module.student]

    def training_step(self, batch: Any, batch_index: int) -> Any:
        """One micro-batch; DeepSpeed is told which one ends the gradient accumulation."""
        last = (batch_index + 1) % self.lightning_module.trainer.accumulate_grad_batches == 0
        self.deepspeed_engine.set_gradient_accumulation_boundary(last)
        return super().training_step(batch, batch_index)

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Lightning has divided the loss by the number of micro-batches."""
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def optimizer_step(
        self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any
    ) -> Any:
        """One step of the engine, then log the gradient norm, which only the engine knows.

        Raises:
            ValueError: the norm is not finite; no checkpoint of these weights is written.
        """
        result = super().optimizer_step(optimizer, closure, model, **kwargs)
        if self.deepspeed_engine.is_gradient_accumulation_boundary():
            module = self.lightning_module
            norm = float(self.deepspeed_engine.get_global_grad_norm())
            if not torch.isfinite(torch.tensor(norm)):
                raise ValueError(not_finite(module.trainer, f"the gradient's norm is {norm}"))
            for group in optimizer.param_groups:
                if group.get("active", True):
                    module.log(f"train/grad_norm_{group.get('name', 'student')}", norm)
        return result

    # -- networks ----------------------------------------------------------------------------

    def shard_or_move(self, network: nn.Module, keep: bool) -> None:
        """Shard a frozen network over the ranks (ZeRO-3), or move it to the device."""
        if keep:
            self._kept.append(network)
        if not self.zero_stage_3 or not list(network.parameters()):
            network.to(self.root_device)
            return
        engine, *_ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=self.root_device.index),
            model=network,
            model_parameters=[],
            config={
                "train_micro_batch_size_per_gpu": 1,
                "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
            },
            dist_init_required=False,
        )
        self._frozen.append(engine)

    def on_train_end(self) -> None:
        """Gather the networks that are handed on, on rank 0's CPU."""
        self._make_whole()

    def teardown(self) -> None:
        """Gather them also after a fit without steps left, for which on_train_end is not called."""
        self._make_whole()
        super().teardown()

    def _make_whole(self) -> None:
        if self.zero_stage_3 and not stopped(self.lightning_module.trainer):
            for network in self._kept:
                _gather(network, self.is_global_zero)
        self._kept = []

    # -- checkpoints -------------------------------------------------------------------------

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Every rank writes its files; the name then points to the new folder.

        Raises:
            OSError: if it could not be written; the previous one is kept.
        """
        with replaced(Path(filepath), self.is_global_zero, self.barrier) as folder:
            if self.is_global_zero:
                (folder / SHAPE).write_text(json.dumps(self._shape()), encoding="utf-8")
            super().save_checkpoint(checkpoint, folder, storage_options)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Weights, optimizer and everything else of this rank.

        Raises:
            ValueError: it was sharded over another number of processes or in another way.
        """
        shape = Path(checkpoint_path, SHAPE).read_text(encoding="utf-8")
        saved, own = json.loads(shape), self._shape()
        if saved != own:
            found, wanted = (" and ".join(f"{k}={v}" for k, v in s.items()) for s in (saved, own))
            raise ValueError(
                f"{checkpoint_path}: written with {found}, this run has {wanted}; go on as it was"
                " written, or delete it to start this run again"
            )
        # DeepSpeed looks for its files by patterns, in which brackets of a path mean something.
        with TemporaryDirectory() as plain:
            link = Path(plain, "checkpoint")
            link.symlink_to(Path(checkpoint_path).resolve())
            return super().load_checkpoint(link, weights_only)

    def _shape(self) -> dict[str, int]:
        """What a checkpoint's files depend on."""
        zero_stage = self.config["zero_optimization"]["stage"]
        return {"processes": self.world_size, "launch.zero_stage": zero_stage}


def _gather(network: nn.Module, first: bool) -> None:
    """Gather one parameter at a time: whole on rank 0's CPU, empty elsewhere."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            with deepspeed.zero.GatheredParameters([parameter]):
                whole = parameter.detach().cpu().clone() if first else torch.empty(0)
            module._parameters[name] = nn.Parameter(whole, parameter.requires_grad)
