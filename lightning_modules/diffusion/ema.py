"""A frozen fp32 copy of a network that follows it: CD's target, and the student one evaluates."""

import copy

import torch
from torch import Tensor, nn


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
        """One step towards ``network``."""
        shadow = list(self.module.parameters())
        current = [p.detach().to(s) for s, p in zip(shadow, network.parameters(), strict=True)]
        torch._foreach_lerp_(shadow, current, 1 - self.decay)

    @torch.no_grad()
    def reset(self, network: nn.Module) -> None:
        """Start again from ``network``."""
        for shadow, parameter in zip(self.module.parameters(), network.parameters(), strict=True):
            shadow.copy_(parameter)

    def state_dict(self) -> dict[str, Tensor]:
        """The shadow's weights under the network's own names."""
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the shadow; names and shapes must agree."""
        self.module.load_state_dict(state)
