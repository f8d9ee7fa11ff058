"""bfloat16 where it costs nothing, float32 where rounding would be seen.

Under bfloat16 autocast a linear layer rounds its weights whenever it runs. A frozen network may
therefore hold them rounded, in half the memory, and answer the same, bit for bit; a trained one may
not: an update of 2e-6 is below bfloat16's resolution. What runs in float32 even under autocast
keeps its float32 weights: the time embedding (which tells apart neighbouring noise levels), norms
and modulation tables. Rotary tables are no weights at all (`rotary.py`).
"""

from torch import nn

_FULL = ("time_embedder", "time_proj")


def to_bfloat16(network: nn.Module) -> nn.Module:
    """Round, in place, the weights of a frozen `Wan` that autocast would round anyway.

    Args:
        network: is only asked, and under `torch.autocast(dtype=torch.bfloat16)`.
    """
    import torch

    for name, module in network.named_modules():
        linear = isinstance(module, nn.Linear | nn.Conv3d)
        if linear and not any(part in _FULL for part in name.split(".")):
            module.to(torch.bfloat16)
    return network
