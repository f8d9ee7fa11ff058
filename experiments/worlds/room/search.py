"""Where a frame was seen from: search for the camera whose rendering is nearest to it.

A grid of 7 x 7 x 7 cameras around the one that was commanded, 1.2 units and 60 degrees wide, at
half the resolution; then the best one's neighbours at ever finer steps. A frame counts under the
lamp that fits it better. On real frames through the autoencoder this finds places to a tenth of a
step and yaws to a degree (tests/test_room_scores.py).
"""

from itertools import product

import numpy as np

from datamodules.cameras import placed
from experiments.worlds.room.paint import HALF
from experiments.worlds.room.render import LIGHTS, seen

Place = np.ndarray
"""x, z and yaw in degrees."""
SPREAD = np.array([0.6, 0.6, 30.0])
"""How far from the commanded camera the grid reaches."""
GRID = np.array(list(product(np.linspace(-1, 1, 7), repeat=3)))
AROUND = np.array(list(product((-1, 0, 1), repeat=3)))
HALVINGS = 6
INSIDE = HALF - 0.1
"""How near to a wall a camera may be looked for."""


def found(frame: np.ndarray, commanded: Place, faces: np.ndarray) -> Place:
    """The camera that a frame was seen from.

    Args:
        frame: uint8 ``[S, S, 3]``.
        commanded: where to look first.
        faces: of its room, from `paint.paintings`.
    """
    whole = frame.astype(np.float32) / 255
    half = whole.reshape(len(whole) // 2, 2, -1, 2, 3).mean((1, 3))
    best = _nearest(half, commanded + GRID * SPREAD, faces)
    spacing = SPREAD / 3
    for _ in range(HALVINGS):
        spacing = spacing / 2
        best = _nearest(whole, best + AROUND * spacing, faces)
    return best


def differences(frame: np.ndarray, rendered: np.ndarray) -> np.ndarray:
    """Mean squared difference of a frame in [0, 1] to renderings ``[N, S, S, 3]`` with the lamp on,
    for each light: ``[N, 2]``.
    """
    axes = (1, 2, 3)
    return np.stack([np.square(rendered * light - frame).mean(axes) for light in LIGHTS], 1)


def _nearest(frame: np.ndarray, places: np.ndarray, faces: np.ndarray) -> Place:
    places = places.copy()
    places[:, :2] = places[:, :2].clip(-INSIDE, INSIDE)
    poses = np.stack([placed(*place) for place in places])
    rendered = seen(poses, faces, len(frame), rays=1)
    return places[differences(frame, rendered).min(1).argmin()]
