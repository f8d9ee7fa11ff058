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
    """Return cos + i sin of every pair's angle, complex64 [T, 1, head_dim / 2].

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
        return torch.complex(angle.cos().float(), angle.sin().float()).to(device)


def apply_rope(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate `x` [..., T, heads, head_dim], in float32, by the angles of its tokens.

    On a CPU one complex product is seven times faster than four real ones and their interleaving;
    elsewhere the real ones are what a compiler can fuse.
    """
    if x.device.type != "cpu":
        return _apply_rope_real(x, rope)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rope).flatten(-2).type_as(x)


def _apply_rope_real(x: Tensor, rope: Tensor) -> Tensor:
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = torch.view_as_real(rope).unbind(-1)
    rotated = (first * cos - second * sin, first * sin + second * cos)
    return torch.stack(rotated, -1).flatten(-2).type_as(x)
