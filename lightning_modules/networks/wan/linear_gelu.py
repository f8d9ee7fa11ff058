"""GELU of a linear layer in one kernel: on CUDA the product applies it before it stores.

Only for inference. The compiler would write the product, and read it again for GELU: a third of the
time of Wan's first product of the MLP for one frame.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("causal_distillation::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """tanh-GELU of x W^T + b, [..., D] -> [..., F], all of one dtype."""
    if not x.is_cuda:  # torch's own joint operator is the GELU of erf there
        return F.gelu(F.linear(x, weight, bias), approximate="tanh")
    return torch._addmm_activation(bias, x.flatten(0, -2), weight.mT, use_gelu=True).unflatten(
        0, x.shape[:-1]
    )


@linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], len(weight)))
