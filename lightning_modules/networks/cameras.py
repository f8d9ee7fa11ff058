"""Cameras in attention: projective positional encoding (PRoPE), and networks bound to cameras.

A frame with the world-to-camera matrix ``W`` and the intrinsics ``K``, in fractions of the image
and measured from its middle, has the invertible matrix

    P = lift(K) W        lift(K) = [[fx, 0, cx, 0], [0, fy, cy, 0], [0, 0, 1, 0], [0, 0, 0, 1]]

A query of frame i and a key of frame j are multiplied by it, four channels at a time:

    q' = P_i^T q    k' = P_j^-1 k    v' = P_j^-1 v    o = P_i sum_j softmax(q' k' / sqrt(d)) v'

so only the relative matrix ``P_i P_j^-1`` counts. It is a function of the two frames alone, hence
parallel passes equal cached ones, and what is cached is ``k', v'``.

A network may also be told the camera's motion since the frame before, ``W_i W_{i-1}^-1 - I``; it is
zero for the first frame, and the same from any origin.

Matrices are made in float64, with inverses in closed form, and multiplied in float32: in bfloat16 a
step is lost in the distance walked. Source: Cameras as Relative Positional Encoding, arXiv
2507.10496, Eq. 4-9; on all channels of a head, as HY-WorldPlay and minWM have it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Posed", "check_cameras", "projective", "tiled"]


def projective(poses: Tensor, intrinsics: Tensor, before: Tensor | None = None) -> Tensor:
    """``P``, ``P^-1`` and the motion of every frame, ``[B, F, 3, 4, 4]`` float32.

    Args:
        poses: the first three rows of world-to-camera matrices, ``[B, F, 3, 4]``.
        intrinsics: fx, fy, cx, cy in fractions of the image, ``[B, F, 4]``; 0.5 is its middle.
        before: of the frames before them; None: they are all frames of a clip.
    """
    before = torch.cat([poses[:, :1], poses[:, :-1]], 1) if before is None else before
    turned, moved = poses.double().split([3, 1], dim=-1)
    back, back_before = turned.transpose(-1, -2), before[..., :3].double().transpose(-1, -2)
    fx, fy, cx, cy = intrinsics.double().unbind(-1)
    cx, cy, one = cx - 0.5, cy - 0.5, torch.ones_like(fx)
    matrix = _lift(fx, fy, cx, cy, one) @ _rigid(turned, moved)
    inverse = _rigid(back, -back @ moved) @ _lift(1 / fx, 1 / fy, -cx / fx, -cy / fy, one)
    since = _rigid(turned, moved) @ _rigid(back_before, -back_before @ before[..., 3:].double())
    motion = since - torch.eye(4, dtype=since.dtype, device=since.device)
    return torch.stack([matrix, inverse, motion], dim=-3).float()


def tiled(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply tokens by their frame's matrix, four channels at a time, in float32 or float64.

    Args:
        x: tokens ``[B, T, H, E]`` of N frames, or of none, E divisible by 4.
        matrix: ``[B, N, 4, 4]``, float32 even under autocast.
    """
    if not x.shape[1]:
        return x
    dtype = torch.promote_types(x.dtype, matrix.dtype)
    with torch.autocast(x.device.type, enabled=False):
        groups = x.to(dtype).reshape(matrix.shape[0] * matrix.shape[1], -1, 4)
        return (groups @ matrix.to(dtype).flatten(0, 1).mT).view_as(x).type_as(x)


class Posed:
    """A network bound to the cameras of a batch: it keeps the contract of networks without cameras.

    Args:
        net: a network with ``config.cameras``.
        cameras: ``[B, F, 3, 4, 4]`` from `projective`, by frame index; None: bound later. Of a
            stream: a function from frame indices ``[N]`` to ``[B, N, 3, 4, 4]``. A call on n * B
            clips is on n branches of guidance, and all have them.
    """

    def __init__(
        self, net: Any, cameras: Tensor | Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.net, self.config, self.new_cache = net, net.config, net.new_cache
        self.cameras = cameras

    def __call__(self, x: Tensor, t: Tensor, text: Tensor, *, frames: Tensor, **how: Any) -> Tensor:
        """As the network's, with the cameras of the frames.

        Raises:
            ValueError: a frame has no camera.
        """
        cameras = self._of(frames)
        cameras = cameras.repeat(x.shape[0] // cameras.shape[0], 1, 1, 1, 1)
        return self.net(x, t, text, frames=frames, cameras=cameras, **how)

    def _of(self, frames: Tensor) -> Tensor:
        if callable(self.cameras):
            return self.cameras(frames)
        known = 0 if self.cameras is None else self.cameras.shape[1]
        if known <= (last := int(frames.max())):
            raise ValueError(f"frame {last} has no camera: the walk has {known}; give a longer one")
        return self.cameras[:, frames.to(self.cameras.device)]


def check_cameras(config: Any, x: Tensor, cameras: Tensor | None) -> None:
    """Raise ValueError unless a call on x ``[B, N, ...]`` has what a network of `config` takes."""
    if (cameras is not None) != config.cameras:
        raise ValueError(
            "this network was made for cameras and got none: bind it to those of the clips"
            if config.cameras
            else "this network knows no cameras: build it with network.cameras=true"
        )
    if cameras is not None and cameras.shape != (wanted := (*x.shape[:2], 3, 4, 4)):
        raise ValueError(f"x {tuple(x.shape)} needs cameras {wanted}, got {cameras.shape}")


def _rigid(turned: Tensor, moved: Tensor) -> Tensor:
    """``[..., 4, 4]`` from ``[..., 3, 3]`` and ``[..., 3, 1]``."""
    last = turned.new_tensor([0, 0, 0, 1]).expand(*turned.shape[:-2], 1, 4)
    return torch.cat([torch.cat([turned, moved], -1), last], -2)


def _lift(fx: Tensor, fy: Tensor, cx: Tensor, cy: Tensor, one: Tensor) -> Tensor:
    zero = torch.zeros_like(one)
    rows = (fx, zero, cx, zero), (zero, fy, cy, zero), (zero, zero, one, zero)
    rows = (*rows, (zero, zero, zero, one))
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
