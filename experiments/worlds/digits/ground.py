"""The ground behind the digit: tiles of two gray levels that scroll past.

Every tile is dark or bright with probability one half, independent of all others. The ground moves
to the left by whole tiles a frame, so in every frame new tiles enter, each of which costs one bit
that no network can predict. Their mean is a gray that real frames never show, and what was
generated wrongly stays in the context of later frames.

Edges between tiles are smooth (a smoothstep over half a tile), as far as 16 of the 64 cosine
coefficients of an 8x8 patch keep them (`moving_digits`).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ground:
    """The ground of one clip.

    Attributes:
        tiles: bool [rows, columns], which tiles are bright; columns are all that pass through.
        offsets: int64 [T], px by which the ground has moved.
        tile: px, side of a tile.
    """

    tiles: np.ndarray
    offsets: np.ndarray
    tile: int

    @classmethod
    def draw(
        cls, rng: np.random.Generator, size: int, frames: int, tile: int, scroll: int
    ) -> "Ground":
        """A ground under the law, for frames of `size` px that it moves through by `scroll` px."""
        offsets = scroll * np.arange(frames)
        shape = size // tile, (size + offsets[-1]) // tile
        return cls(rng.random(shape) < 0.5, offsets, tile)

    def brightness(self, size: int) -> np.ndarray:
        """0 where dark, 1 where bright, between them on edges: float64 [T, size, size]."""
        rows, columns = self.tiles.shape
        down = _shares(np.arange(size) + 0.5, rows, self.tile)
        pixels = np.arange(size) + 0.5 + self.offsets[:, None]
        return down @ self.tiles @ np.swapaxes(_shares(pixels, columns, self.tile), -1, -2)

    def seen(self, size: int) -> np.ndarray:
        """Which of the tiles in each frame are bright: float32 [T, size / tile, size / tile]."""
        columns = self.offsets[:, None] // self.tile + np.arange(size // self.tile)
        return np.moveaxis(self.tiles[:, columns], 0, 1).astype(np.float32)


def _shares(places: np.ndarray, count: int, tile: int) -> np.ndarray:
    """How much of each of `count` tiles in a row lies at places [..., n] px: [..., n, count], sums
    to 1; the outermost tiles go on for ever.
    """
    edges = np.arange(1, count) * tile
    d = np.clip((places[..., None] - edges) / (tile / 2) + 0.5, 0, 1)
    beyond = d**2 * (3 - 2 * d)  # [..., n, count - 1]: share of what lies right of each edge
    one, none = np.ones((*places.shape, 1)), np.zeros((*places.shape, 1))
    return np.concatenate([one, beyond], -1) - np.concatenate([beyond, none], -1)
