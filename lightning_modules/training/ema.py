"""Exponential moving average of a network in fp32: CD's target, and the evaluated student."""

import copy

import torch
from torch import Tensor, nn

from lightning_modules.training.sharding import fill, local_shard, local_shards


class EMA:
    """``shadow <- decay shadow + (1 - decay) network``, in fp32.

    At the learning rates used here (2e-6) a bf16 shadow would not move at all, so it is fp32
    whatever the network's dtype. Not an ``nn.Module``, to keep the shadow out of the stage's state
    dict: its owner saves it.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(network).float().eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """One EMA step towards ``network``, which is sharded as the shadow is."""
        shadow = [local_shard(parameter) for parameter in self.module.parameters()]
        current = [local_shard(p).to(s) for s, p in zip(shadow, network.parameters(), strict=True)]
        torch._foreach_lerp_(shadow, current, 1 - self.decay)

    def reset(self, network: nn.Module) -> None:
        """Copy ``network`` to the shadow."""
        fill(self.module.parameters(), map(local_shard, network.parameters()))

    def state_dict(self) -> dict[str, Tensor]:
        """The shadow's weights (this rank's shards) under the network's own names."""
        return local_shards(self.module)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the shadow.

        Raises:
            ValueError: names or shapes differ.
        """
        own = local_shards(self.module)
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in state.items()}:
            raise ValueError(
                "the EMA in the checkpoint belongs to another network, or was sharded over another"
                " number of processes: delete the checkpoint to start this run again"
            )
        for name, value in own.items():
            value.copy_(state[name])
