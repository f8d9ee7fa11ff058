"""The room as a camera sees it: exact rays, two by two a pixel, onto the inside of a box.

The box is ``|x|, |z| <= 2``, with the floor at y = 1 and the ceiling at y = -1; y points down. Seen
from inside, the face that a ray meets is the first of the three it heads for.
"""

import numpy as np

from datamodules.cameras import inverse
from experiments.worlds.room.paint import HALF, SIDE

BOX = np.array([HALF, 1.0, HALF])
INTRINSICS = (0.5, 0.5, 0.5, 0.5)
"""fx, fy, cx, cy in fractions of the image: 90 degrees."""
LIGHTS = np.array([[1.0, 1.0, 1.0], [0.35, 0.40, 0.60]], np.float32)
"""What each colour is multiplied with when the lamp is on, and when it is off."""
RAYS = 2
"""Along each side of a pixel."""


def render(
    poses: np.ndarray, faces: np.ndarray, dark: np.ndarray, size: int, rays: int = RAYS
) -> np.ndarray:
    """Frames of the room, uint8 ``[F, size, size, 3]``.

    Args:
        poses: world-to-camera ``[F, 4, 4]``, the room being the world; inside the box.
        faces: ``[6, S, S, 3]`` from `paint.paintings`.
        dark: ``[F]`` bool, whether the lamp is off.
        size: pixels of a side.
        rays: along each side of a pixel.
    """
    lit = seen(poses, faces, size, rays) * LIGHTS[dark.astype(int)][:, None, None]
    return (255 * lit + 0.5).astype(np.uint8)


def seen(poses: np.ndarray, faces: np.ndarray, size: int, rays: int = RAYS) -> np.ndarray:
    """As `render` with the lamp on, float32 ``[F, size, size, 3]`` in [0, 1]."""
    cameras = inverse(poses)
    directions = _directions(size * rays) @ np.swapaxes(cameras[:, :3, :3], 1, 2)  # [F, rays, 3]
    colours = _colours(cameras[:, None, :3, 3], directions.astype(np.float32), faces)
    tiles = colours.reshape(len(poses), size, rays, size, rays, 3)
    return tiles.mean((2, 4))


def _directions(side: int) -> np.ndarray:
    """Rays through an image of `side` x `side` points, row by row, ``[side * side, 3]``."""
    fx, fy, cx, cy = INTRINSICS
    at = (np.arange(side) + 0.5) / side
    y, x = np.meshgrid((at - cy) / fy, (at - cx) / fx, indexing="ij")
    return np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3)


def _colours(origins: np.ndarray, directions: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """What rays ``[F, R, 3]`` from ``[F, 1, 3]`` meet, ``[F, R, 3]``."""
    with np.errstate(divide="ignore"):
        far = (np.copysign(BOX, directions) - origins) / directions
    axis = far.argmin(-1)
    meets = origins + np.take_along_axis(far, axis[..., None], -1) * directions
    x, y, z = np.moveaxis(meets / BOX, -1, 0)
    positive = np.take_along_axis(directions, axis[..., None], -1)[..., 0] > 0
    along = np.where(axis == 0, z, x)
    down = np.where(axis == 1, z, y)
    return _bilinear(faces, 2 * axis + positive, down, along)


def _bilinear(faces: np.ndarray, face: np.ndarray, down: np.ndarray, along: np.ndarray):
    """Texture values at positions from -1 to 1, held constant beyond the middle of the rim."""
    row, column = (np.clip((at + 1) / 2 * SIDE - 0.5, 0, SIDE - 1.001) for at in (down, along))
    top, left = row.astype(int), column.astype(int)
    lower, right = (row - top)[..., None], (column - left)[..., None]
    flat = faces.reshape(-1, 3)
    corner = (face * SIDE + top) * SIDE + left
    above = flat[corner] * (1 - right) + flat[corner + 1] * right
    below = flat[corner + SIDE] * (1 - right) + flat[corner + SIDE + 1] * right
    return (above * (1 - lower) + below * lower).astype(np.float32)
