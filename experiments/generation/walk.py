"""The camera of a stream: keys, block by block, become the cameras of its frames.

Keys are moved by the functions that made the training data (``datamodules/cameras.py``). A key that
is down while a block begins moves every frame of the block, and so does one that was pressed and
let go since the block before. The first frame is where a walk begins: no key moves it.

Poses are kept in the world of the first frame, in float64. The network sees them from an origin
that follows the walk: bfloat16 keys grow with the distance from it, their differences do not.

Walls are part of what a student draws. One stops the camera where the data says between which its
walks were, and where in that world the first frame was seen from.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.cameras import MOTIONS, Keys, Matrix, Stride, inverse, moved, placed
from datamodules.shards.reader import ShardReader
from lightning_modules.networks.cameras import projective

FURTHEST = 2.0
"""Units from the origin at which it is moved; walks of training clips reach as far."""


@dataclass(frozen=True)
class Camera:
    """What the training data of a student says of its camera.

    Args:
        stride: how far a key moves it in a latent frame.
        intrinsics: fx, fy, cx, cy in fractions of the image.
        keys: that its walks were made with.
        walls: least and greatest x and z of a camera in the world of the data; None: no walls.
    """

    stride: Stride
    intrinsics: tuple[float, float, float, float]
    keys: tuple[str, ...] = tuple(MOTIONS)
    walls: tuple[tuple[float, float], ...] | None = None

    def check(self, keys: Collection[str], student: str) -> None:
        """Raise ValueError for a key that walks of the training data were made without."""
        if unknown := sorted(set(keys) - set(self.keys)):
            raise ValueError(
                f"keys: {student} was trained on walks without {', '.join(unknown)}; it knows"
                f" {', '.join(self.keys)}"
            )

    def as_dict(self) -> dict[str, Any]:
        """As recordings have it."""
        return {**asdict(self.stride), "intrinsics": self.intrinsics}


def camera_of(shards: ShardReader) -> Camera | None:
    """The camera of a set, with the intrinsics of its first sample; None if it says nothing."""
    about = shards.manifest.get("cameras")
    if about is None:
        return None
    intrinsics = shards.read(0, ["intrinsics"])["intrinsics"][0]
    keys = tuple(key for key in MOTIONS if key in about.get("keys", MOTIONS))
    walls = tuple(map(tuple, about["walls"])) if about.get("walls") else None
    return Camera(Stride(about["step"], about["turn"]), tuple(map(float, intrinsics)), keys, walls)


class Walk:
    """Where the camera of a stream is and has been.

    Args:
        camera: of the student.
        device: of the matrices.
        start: x, z and yaw of the first frame in the world of the data; None: they are not known.
    """

    def __init__(
        self, camera: Camera, device: torch.device, start: Sequence[float] | None = None
    ) -> None:
        self._camera, self._device = camera, device
        self._start = placed(*start) if start and camera.walls else None
        self._poses: dict[int, tuple[Matrix, Matrix]] = {0: (np.eye(4), np.eye(4))}  # and before
        self._origin = np.eye(4)
        self._down: Keys = frozenset()
        self._pressed: Keys = frozenset()  # since the last block
        self.keys: Keys = frozenset()
        """Keys that moved the last block."""

    def press(self, keys: Collection[str]) -> None:
        """These keys are down now, and no others."""
        self._pressed |= frozenset(keys) - self._down
        self._down = frozenset(keys)

    def go(self, block: slice) -> None:
        """Move the camera through the frames of the next block."""
        self.keys = self._down | self._pressed
        self._pressed = frozenset()
        for frame in range(max(block.start, 1), block.stop):
            before, _ = self._poses[frame - 1]
            after = self._stopped(moved(before, self.keys, self._camera.stride))
            self._poses[frame] = after, before

    def _stopped(self, pose: Matrix) -> Matrix:
        """The pose after the walls have stopped it."""
        if self._start is None:
            return pose
        camera = inverse(pose @ self._start)
        for axis, (least, greatest) in zip((0, 2), self._camera.walls, strict=True):
            camera[axis, 3] = np.clip(camera[axis, 3], least, greatest)
        return inverse(camera) @ inverse(self._start)

    def keep(self, frames: Collection[int]) -> None:
        """Forget the cameras of all other frames; the last one must be kept."""
        self._poses = {frame: pose for frame, pose in self._poses.items() if frame in frames}

    def cameras(self, frames: Tensor) -> Tensor:
        """Cameras of frames ``[N]`` that are kept, ``[1, N, 3, 4, 4]`` float32 (`projective`)."""
        poses = np.array([self._poses[frame] for frame in frames.tolist()])
        seen, before = torch.from_numpy((poses @ inverse(self._origin))[None, :, :, :3]).unbind(2)
        lens = torch.tensor(self._camera.intrinsics, dtype=torch.float64).expand(1, len(poses), 4)
        return projective(seen, lens, before).to(self._device)

    def move_origin(self) -> Tensor | None:
        """Make the newest camera the origin, if it is far from it.

        Returns:
            The change ``[1, 4, 4]`` float32 for `KVCache.move_origin`; None: it is near.
        """
        newest, _ = self._poses[max(self._poses)]
        change = newest @ inverse(self._origin)
        if np.linalg.norm(inverse(change)[:3, 3]) <= FURTHEST:
            return None
        self._origin = newest
        return torch.from_numpy(change[None]).float().to(self._device)
