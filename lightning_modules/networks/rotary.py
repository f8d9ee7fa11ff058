"""Rotary positions of video tokens, at any frame index.

Wan splits each head's pairs of channels over time, height and width; a pair turns by position x frequency.
Angles are computed in float64 and their cosines and sines kept in float32, outside the module's buffers, so
that no `.bfloat16()` can round them; any frame index is valid, there is no table to run out of. The layout
(pairs are neighbouring channels; time first) is diffusers' `WanRotaryPosEmbed`.
"""

from functools import lru_cache

import torch
from torch import Tensor

THETA = 10_000.0

Rotation = tuple[Tensor, Tensor]


def axis_channels(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that turn with time, height and width."""
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


@lru_cache(maxsize=256)
def rotation(
    frames: tuple[int, ...], height: int, width: int, head_dim: int, device: torch.device
) -> Rotation:
    """Cosines and sines, each float32 [T, 1, head_dim / 2], of T = len(frames) * height * width tokens.

    Shared between equal calls (do not write to them).
    """
    with torch.inference_mode(False):  # else a table first asked for by validation breaks training
        grid = torch.meshgrid(
            torch.tensor(frames, dtype=torch.float64),
            torch.arange(height, dtype=torch.float64),
            torch.arange(width, dtype=torch.float64),
            indexing="ij",
        )
        angles = [
            place.reshape(-1, 1) * THETA ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
            for place, size in zip(grid, axis_channels(head_dim), strict=True)
        ]
        turns = torch.cat(angles, 1)[:, None]
        return turns.cos().float().to(device), turns.sin().float().to(device)


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """Turn `x` [..., T, heads, head_dim], in float32, by the angles of its tokens."""
    cos, sin = turn
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)
