"""Rotary position embedding (RoPE) of video tokens, at any frame index.

Wan splits each head's pairs of channels over time, height and width; a pair is rotated by
position x frequency. Angles are computed in float64; their cosines and sines are kept in float32,
outside the module's buffers, so that no `.bfloat16()` can round them. Any frame index is valid:
there is no table to run out of. The layout (a pair is two neighbouring channels; time first) is
that of diffusers' `WanRotaryPosEmbed`.
"""

from functools import lru_cache

import torch
from torch import Tensor

THETA = 10_000.0


def axis_channels(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that are rotated by time, height and width."""
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


@lru_cache(maxsize=64)  # all blocks of a published clip; an endless stream only passes through
def rope_table(
    frames: tuple[int, ...], height: int, width: int, head_dim: int, device: torch.device
) -> Tensor:
    """Return cos and sin of every pair's angle, float32 [T, 1, head_dim / 2, 2].

    T = len(frames) * height * width tokens. Equal calls share one tensor: do not write to it.
    """
    with torch.inference_mode(False):  # else a table first asked for by validation breaks training
        grid = torch.meshgrid(
            torch.tensor(frames, dtype=torch.float64),
            torch.arange(height, dtype=torch.float64),
            torch.arange(width, dtype=torch.float64),
            indexing="ij",
        )
        angles = [
            positions.reshape(-1, 1)
            * THETA ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
            for positions, size in zip(grid, axis_channels(head_dim), strict=True)
        ]
        angle = torch.cat(angles, 1)[:, None]
        return torch.stack((angle.cos().float(), angle.sin().float()), -1).to(device)


def apply_rope(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate `x` [..., T, heads, head_dim], in float32, by the angles of its tokens.

    On a CPU a complex product is seven times faster than real ones; elsewhere the real ones are
    what a compiler fuses, with the norm before them and the cast behind.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rope))
    else:
        turned = _rotated(pairs, rope)
    return turned.flatten(-2).type_as(x)


def _rotated(pairs: Tensor, rope: Tensor) -> Tensor:
    """(a, b) -> (a, b) cos + (b, a) (-sin, sin), of pairs [..., 2]."""
    cos, sin = rope.unbind(-1)
    signs = 2 * torch.arange(2, device=pairs.device) - 1
    return pairs * cos[..., None] + pairs.flip(-1) * sin[..., None] * signs
