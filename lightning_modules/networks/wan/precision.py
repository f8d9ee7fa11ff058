"""bfloat16 weights for frozen networks, without changing their outputs.

Under bfloat16 autocast a linear layer rounds its weights whenever it runs. A frozen network may
therefore store them in bfloat16, in half the memory, with bit-identical outputs; a trained one may
not: an update of 2e-6 is below bfloat16's resolution. What runs in float32 even under autocast
keeps float32 weights: the time embedding (which tells neighbouring noise levels apart), norms and
modulation tables. RoPE tables are not weights (`rotary.py`).
"""

from torch import nn

_FULL = ("time_embedder", "span_embedder", "time_proj")


def to_bfloat16(network: nn.Module) -> nn.Module:
    """Round, in place, the weights of a frozen `Wan` that autocast would round anyway.

    Args:
        network: for inference only, under `torch.autocast(dtype=torch.bfloat16)`.
    """
    import torch

    for name, module in network.named_modules():
        linear = isinstance(module, nn.Linear | nn.Conv3d)
        if linear and not any(part in _FULL for part in name.split(".")):
            module.to(torch.bfloat16)
    return network
