"""Real clips under one known corruption: floors of the table, calibration, tests of metrics.

Arrays: videos uint8 [N, T, H, W, 1]; every function is deterministic in its seed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

Attributes = list[dict[str, Any]]


def noise(videos: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Uniform noise instead of frames."""
    return rng.integers(0, 256, videos.shape, dtype=np.uint8)


def grain(videos: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of 40 gray levels on top."""
    noisy = videos + rng.normal(0, 40, videos.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def blur(videos: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian of 2 px in space."""
    soft = gaussian_filter(videos.astype(np.float32), (0, 0, 2, 2, 0))
    return np.rint(soft).astype(np.uint8)


def shuffle_frames(videos: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every clip's frames in random order."""
    order = rng.permuted(np.tile(np.arange(videos.shape[1]), (len(videos), 1)), axis=1)
    return np.take_along_axis(videos, order[:, :, None, None, None], axis=1)


def freeze(videos: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Nothing moves after the second frame."""
    frozen = videos.copy()
    frozen[:, 2:] = frozen[:, 1:2]
    return frozen


def splice(videos: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each frame comes from another clip."""
    return np.stack([videos[rng.permutation(len(videos)), t] for t in range(videos.shape[1])], 1)


PIXELS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    f.__name__: f for f in (noise, grain, blur, shuffle_frames, freeze, splice)
}
WORTHLESS = (*PIXELS, "shuffle_captions")
NAMES = ("none", *WORTHLESS)


def corrupt(
    name: str, videos: np.ndarray, attributes: Attributes, seed: int
) -> tuple[np.ndarray, Attributes]:
    """Clips and captions after the corruption `name`.

    Raises:
        ValueError: no such corruption.
    """
    if name not in NAMES:
        raise ValueError(f"score.corrupt: no corruption {name!r}; there are {', '.join(NAMES)}")
    rng = np.random.default_rng(seed)
    if name == "shuffle_captions":
        return videos, [attributes[i] for i in rng.permutation(len(attributes))]
    return (videos if name == "none" else PIXELS[name](videos, rng)), attributes
