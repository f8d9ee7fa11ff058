"""Latent frames cut into patches, of which a transformer's tokens are made, and put back."""

import torch.nn.functional as F
from torch import Tensor, nn


def embedded_patches(x: Tensor, embedding: nn.Conv3d) -> Tensor:
    """[B, N, C, H, W] -> [B, N, S, D]; patches do not overlap: one matrix product."""
    _, high, wide = embedding.kernel_size
    cut = x.unflatten(4, (-1, wide)).unflatten(3, (-1, high)).permute(0, 1, 3, 5, 2, 4, 6)
    patches = cut.flatten(4).flatten(2, 3).to(embedding.weight.dtype)
    return F.linear(patches, embedding.weight.flatten(1), embedding.bias)


def grid(x: Tensor, embedding: nn.Conv3d) -> tuple[int, int]:
    """Rows and columns of patches in a frame of [B, N, C, H, W]."""
    _, high, wide = embedding.kernel_size
    return x.shape[3] // high, x.shape[4] // wide


def unpatched(out: Tensor, height: int, width: int, high: int, wide: int) -> Tensor:
    """[B, N, S, high * wide * C], S = height * width -> [B, N, C, height * high, width * wide]."""
    cells = out.unflatten(-1, (high, wide, -1)).unflatten(2, (height, width))
    return cells.permute(0, 1, 6, 2, 4, 3, 5).flatten(5).flatten(3, 4)
