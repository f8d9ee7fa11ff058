"""A frozen fp32 copy of a network that follows it: CD's target, and the student one evaluates."""

import copy

import torch
from torch import Tensor, nn

from lightning_modules.training.sharding import fill, share, shares


class EMA:
    """``shadow <- decay shadow + (1 - decay) network``, in fp32.

    At the rates used here (2e-6) a bf16 shadow would not move at all, so it is fp32 whatever the
    network's dtype. Deliberately no ``nn.Module``: the shadow is no part of the stage's weights;
    who holds it saves it.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(network).float().eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """One step towards ``network``, which is split over the ranks as the shadow is."""
        shadow = [share(parameter) for parameter in self.module.parameters()]
        current = [share(p).to(s) for s, p in zip(shadow, network.parameters(), strict=True)]
        torch._foreach_lerp_(shadow, current, 1 - self.decay)

    def reset(self, network: nn.Module) -> None:
        """Start again from ``network``."""
        fill(self.module.parameters(), map(share, network.parameters()))

    def state_dict(self) -> dict[str, Tensor]:
        """The shadow's weights, this rank's shares of them, under the network's own names."""
        return shares(self.module)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the shadow.

        Raises:
            ValueError: names or shapes do not agree.
        """
        own = shares(self.module)
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in state.items()}:
            raise ValueError(
                "the average in the checkpoint is another network's, or was split over another"
                " number of processes: delete the checkpoint to start this run again"
            )
        for name, value in own.items():
            value.copy_(state[name])
