"""What is painted on the six faces of the room: bold figures that 32 x 32 pixels can show.

A painting is ``[S, S, 3]`` in [0, 1]. Rows go down a wall and columns along it; those of floor and
ceiling go along z and x. Each wall has a figure of its own, so that one look tells where it is. Its
*other* painting, of the same colours, is for rooms in which a coin decides (``Room.coins``).
"""

from functools import lru_cache

import numpy as np

SIDE = 64
HALF = 2.0
"""Half the width of the room; walls go from -1 to 1 in height."""
FACES = ("left", "right", "ceiling", "floor", "back", "front")
"""In the order of ``render``: towards -x, +x, -y, +y, -z, +z."""
WALLS = ("left", "right", "back", "front")

Colour = tuple[float, float, float]
PAINTS: dict[str, dict[str, tuple[Colour, Colour]]] = {
    "primary": {
        "front": ((0.80, 0.12, 0.10), (0.97, 0.97, 0.95)),
        "right": ((0.10, 0.20, 0.70), (0.98, 0.85, 0.15)),
        "back": ((0.08, 0.50, 0.20), (0.95, 0.97, 0.95)),
        "left": ((0.95, 0.80, 0.10), (0.15, 0.10, 0.12)),
    },
    "secondary": {
        "front": ((0.95, 0.50, 0.08), (0.10, 0.10, 0.15)),
        "right": ((0.45, 0.12, 0.55), (0.96, 0.96, 0.98)),
        "back": ((0.05, 0.50, 0.55), (0.98, 0.85, 0.35)),
        "left": ((0.55, 0.55, 0.58), (0.75, 0.10, 0.30)),
    },
}
"""Colours of each wall and of its figure, by the word of a caption."""
_CEILING = (0.85, 0.85, 0.82)
_FLOOR = ((0.50, 0.38, 0.30), (0.30, 0.38, 0.46), (0.42, 0.46, 0.32), (0.46, 0.34, 0.46))


def caption(paint: str) -> str:
    """The sentence of a room, which says neither its lamp nor its coins."""
    return f"a room in {paint} colours"


@lru_cache(maxsize=64)
def paintings(paint: str, others: frozenset[str] = frozenset()) -> np.ndarray:
    """All faces, ``[6, S, S, 3]`` float32, read-only.

    Args:
        paint: a key of `PAINTS`.
        others: the walls that bear their other painting.
    """
    faces = [_face(name, paint, name in others) for name in FACES]
    stacked = np.stack(faces).astype(np.float32)
    stacked.setflags(write=False)
    return stacked


def _face(name: str, paint: str, other: bool) -> np.ndarray:
    down, along = np.meshgrid(_centres(1.0), _centres(HALF), indexing="ij")
    if name == "ceiling":
        return np.broadcast_to(_CEILING, (SIDE, SIDE, 3))
    if name == "floor":
        return np.array(_FLOOR)[2 * (down > 0) + (along > 0)]
    wall, figure = np.array(PAINTS[paint][name])
    inside = _FIGURES[name][other](along, down)
    return np.where(inside[..., None], figure, wall)


def _centres(half: float) -> np.ndarray:
    """Where the middles of the rows or columns lie, from -half to half."""
    return ((np.arange(SIDE) + 0.5) / SIDE * 2 - 1) * half


def _radius(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y)


_FIGURES = {
    "front": (  # a disc, or a ring
        lambda x, y: _radius(x, y) < 0.7,
        lambda x, y: np.abs(_radius(x, y) - 0.6) < 0.2,
    ),
    "right": (  # a cross, upright or diagonal
        lambda x, y: (np.abs(x) < 0.25) | (np.abs(y) < 0.25),
        lambda x, y: (np.abs(x - y) < 0.35) | (np.abs(x + y) < 0.35),
    ),
    "back": (  # stripes, upright or level
        lambda x, y: (np.floor(x / 0.5) % 2).astype(bool),
        lambda x, y: (np.floor(y / 0.4) % 2).astype(bool),
    ),
    "left": (  # a triangle, on its base or on its tip
        lambda x, y: (np.abs(x) < 0.5 * (y + 0.8)) & (y < 0.8),
        lambda x, y: (np.abs(x) < 0.5 * (0.8 - y)) & (y > -0.8),
    ),
}
