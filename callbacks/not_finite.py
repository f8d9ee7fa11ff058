"""Ends training at the first number that is not finite, and says where it came from."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from callbacks.checkpointing import Checkpoint

_NAMED = 8  # samples, or tensors, that a message lists


class StopOnNaN(Callback):
    """Ends training at the first non-finite loss or gradient, before any weight is touched."""

    def __init__(self) -> None:
        self.batch: Mapping[str, Any] = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch, to name its samples."""
        self.batch = batch if isinstance(batch, Mapping) else {}

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Refuse a loss that is not finite.

        Raises:
            ValueError: says the step, where the number came from, and what to try.
        """
        if not torch.isfinite(loss).all():
            raise ValueError(not_finite(trainer, f"the loss is {loss.detach().mean().item()}"))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Refuse gradients that are not finite.

        Raises:
            ValueError: says the step, where the number came from, and what to try.
        """
        grads = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if grads:
            norm = torch.stack(torch._foreach_norm(grads)).norm()
            if not torch.isfinite(norm):
                raise ValueError(not_finite(trainer, f"the gradient's norm is {norm.item()}"))


def not_finite(trainer: Trainer, what: str) -> str:
    """The error message: the cause (data, weights or the training itself) and its cure.

    Args:
        trainer: whose callbacks hold the batch and the last checkpoint.
        what: is not finite.
    """
    batches = [each.batch for each in trainer.callbacks if isinstance(each, StopOnNaN)]
    batch = next(iter(batches), {})
    module = trainer.lightning_module
    cause = _in_data(trainer, batch) or _in_networks(module) or _in_training(trainer, batch)
    return f"step {trainer.global_step}: {what}; {cause}"


def _in_data(trainer: Trainer, batch: Mapping[str, Any]) -> str:
    """Which samples are not finite, "" if all are."""
    bad = {name: rows for name in batch if (rows := _bad_rows(batch[name]))}
    if not bad:
        return ""
    keys = batch.get("key") or range(max(map(max, bad.values())) + 1)
    named = "; ".join(f"{name} of {_few([keys[row] for row in bad[name]])}" for name in bad)
    shards = getattr(getattr(trainer, "datamodule", None), "shards", None)
    where = f" of {shards.folder}" if shards else ""
    return (
        f"the data{where} are not finite: {named}. Make that set again without these samples; the"
        " learning rate is not the cause"
    )


def _bad_rows(values: Any) -> list[int]:
    """Rows of a column that hold a NaN or an infinity."""
    if not isinstance(values, Tensor) or not values.is_floating_point() or not values.dim():
        return []
    return [row for row, value in enumerate(values) if not value.isfinite().all()]


def _in_networks(module: LightningModule) -> str:
    """Which weights or constants are not finite, "" if all are; of sharded networks, this rank's
    part.
    """
    named = [(f"constant {name}", value) for name, value in module.named_buffers()]
    for role, network in module.networks().items():
        named += [(f"{role}: {name}", value) for name, value in network.named_parameters()]
    bad = [name for name, value in named if not value.detach().isfinite().all()]
    if not bad:
        return ""
    if module.global_step:
        return f"the data are finite, weights are not ({_few(bad)}): an update was too large"
    return (
        f"the data are finite, weights are not ({_few(bad)}), and were not when they were loaded:"
        " import or train that network again; the learning rate is not the cause"
    )


def _in_training(trainer: Trainer, batch: Mapping[str, Any]) -> str:
    """The data and the weights are finite: what to try, from which checkpoint."""
    good = "there is no checkpoint yet"
    for callback in trainer.callbacks:
        if isinstance(callback, Checkpoint) and callback.saved_step is not None:
            good = f"the last good checkpoint is {callback.path} (step {callback.saved_step})"
    of = f" of {_few(batch['key'])}" if batch.get("key") else ""
    return (
        f"the data{of} and all weights are finite; {good}. Lower the learning rate or"
        " fit.clip_gradient, or train in 32-true, and start again"
    )


def _few(names: Any) -> str:
    names = list(map(str, names))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
