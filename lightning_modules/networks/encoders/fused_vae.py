"""Wan's VAE in fewer kernels, for CUDA: the same function of the same weights.

Half of the time of diffusers' decoder on an H100 went to kernels that copy, or touch each element
once: a norm and its activation are ten, zeros around a frame and float32 for upsampling copy whole
activations. Here norm and SiLU are one compiled kernel, convolutions pad frames themselves, nearest
neighbours are copied in the activation's own dtype, and weights lie as the tensor cores take them,
channels last.

Shapes: x [B, C, F, H, W]; 4 dimensions are [B F, C, H, W].
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders import autoencoder_kl_wan as wan
from torch import Tensor, nn

from lightning_modules.networks.wan.compiled import compiled


def fuse(vae: nn.Module) -> None:
    """Change an `AutoencoderKLWan` in place, for good: for inference."""
    with_activation = {
        wan.WanResidualBlock: ("norm1", "norm2"),
        wan.WanEncoder3d: ("norm_out",),
        wan.WanDecoder3d: ("norm_out",),
    }
    for module in list(vae.modules()):
        for name in with_activation.get(type(module), ()):
            setattr(module, name, NormSiLU(getattr(module, name)))
            module.nonlinearity = nn.Identity()
        for name, child in list(module.named_children()):
            if isinstance(child, wan.WanCausalConv3d):
                setattr(module, name, CausalConv3d(child))
            elif isinstance(child, wan.WanUpsample):
                setattr(module, name, nn.Upsample(scale_factor=child.scale_factor, mode=child.mode))
    for weight in vae.parameters():
        if layout := {4: torch.channels_last, 5: torch.channels_last_3d}.get(weight.dim()):
            weight.data = weight.data.to(memory_format=layout)


class NormSiLU(nn.Module):
    """SiLU of Wan's RMS norm over channels, in float32.

    Args:
        norm: diffusers' `WanRMS_norm`, channels first and without a bias.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.gamma = norm.gamma

    def forward(self, x: Tensor) -> Tensor:
        """As x."""
        return (_compiled_norm_silu() if x.is_cuda else norm_silu)(x, self.gamma)


class CausalConv3d(nn.Module):
    """Wan's causal convolution, which pads a frame's borders itself.

    Args:
        conv: diffusers' `WanCausalConv3d`.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.conv = conv
        wide, _, high, _, self.behind, _ = conv._padding
        self.padding = (0, high, wide)

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """Convolve x after the frames before it, `cache_x`, or after zeros."""
        behind = self.behind
        if cache_x is not None and behind:
            x = torch.cat([cache_x, x], 2)
            behind -= cache_x.shape[2]
        if behind:
            x = F.pad(x, (0, 0, 0, 0, behind, 0))
        return F.conv3d(x, self.conv.weight, self.conv.bias, self.conv.stride, self.padding)


def norm_silu(x: Tensor, gamma: Tensor) -> Tensor:
    """SiLU of x / |x| sqrt(C) gamma, with the norm over channels; computed in float32."""
    full = F.normalize(x.float(), dim=1) * len(gamma) ** 0.5 * gamma.float()
    return F.silu(full).type_as(x)


@cache
def _compiled_norm_silu() -> Callable[[Tensor, Tensor], Tensor]:
    return compiled(norm_silu)
