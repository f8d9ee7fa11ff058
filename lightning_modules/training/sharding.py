"""Networks whose parameters are split over the ranks (DeepSpeed's ZeRO-3), or are not.

A split parameter is empty between the calls that need it; its rank's share is a flat tensor,
``ds_tensor``. What is elementwise, such as an average, works on the shares as it does on whole
tensors, so nothing is gathered for it.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def place(strategy: Any, network: nn.Module, device: torch.device, kept: bool = False) -> None:
    """Bring a network that is no submodule of the trained module to where it computes.

    ``kept``: it is needed after training as well, whole, on the first rank. A strategy that can
    split networks has a method of this name; any other leaves them to the device.
    """
    if hasattr(strategy, "place"):
        strategy.place(network, kept)
    else:
        network.to(device)


def share(parameter: Tensor) -> Tensor:
    """What this rank holds of a parameter: all of it, or its flat part (a view to read or write).

    What was gathered for a call is given back first, so that no stale copy survives a write.
    """
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach()
    parameter.partition()
    return parameter.ds_tensor.detach()


def shares(network: nn.Module) -> dict[str, Tensor]:
    """Every parameter's share and every persistent buffer, by the names of ``state_dict``."""
    return {name: share(value) for name, value in network.state_dict(keep_vars=True).items()}


@torch.no_grad()
def fill(parameters: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Write each value into its parameter's share."""
    for parameter, value in zip(parameters, values, strict=True):
        share(parameter).copy_(value)
