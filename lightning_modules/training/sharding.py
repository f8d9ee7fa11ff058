"""Access to the local shard of parameters that DeepSpeed's ZeRO-3 has partitioned over the ranks.

A partitioned parameter is empty between the calls that need it; this rank's shard is a flat tensor,
``ds_tensor``. Elementwise operations such as an EMA run on the shards, without gathering. Without
ZeRO-3 the local shard is the whole parameter.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def move_to_device(
    strategy: Any, network: nn.Module, device: torch.device, keep: bool = False
) -> None:
    """Move a network that is not a submodule of the trained module to its device, or shard it.

    ``keep``: it is needed after training, gathered on rank 0. A strategy that shards networks has
    a method ``shard_or_move``; any other moves them to the device.
    """
    if hasattr(strategy, "shard_or_move"):
        strategy.shard_or_move(network, keep)
    else:
        network.to(device)


def local_shard(parameter: Tensor) -> Tensor:
    """This rank's shard of a parameter, flat, or all of it: a view to read or write.

    A gathered parameter is partitioned again first, so that no stale copy survives a write.
    """
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach()
    parameter.partition()
    return parameter.ds_tensor.detach()


def local_shards(network: nn.Module) -> dict[str, Tensor]:
    """Every parameter's local shard and every persistent buffer, by their ``state_dict`` names."""
    return {name: local_shard(value) for name, value in network.state_dict(keep_vars=True).items()}


@torch.no_grad()
def fill(parameters: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Write each value into its parameter's local shard."""
    for parameter, value in zip(parameters, values, strict=True):
        local_shard(parameter).copy_(value)
