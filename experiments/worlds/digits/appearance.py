"""How frames look: sharpness and consistency, in closed form (no weights).

Consistency rewards frozen and blurred clips, so it is never read alone; sharpness is compared on
both sides, since noise is sharp too.

Arrays: videos uint8 [N, T, H, W, 1]; values float [N] or [N, T].
"""

import numpy as np


def sharpness(videos: np.ndarray) -> np.ndarray:
    """Variance of the Laplacian of each frame, [N, T]."""
    f = videos[..., 0].astype(np.float32)
    laplacian = (
        f[..., :-2, 1:-1]
        + f[..., 2:, 1:-1]
        + f[..., 1:-1, :-2]
        + f[..., 1:-1, 2:]
        - 4 * f[..., 1:-1, 1:-1]
    )
    return laplacian.var(axis=(-1, -2))


def consistency(features: np.ndarray) -> np.ndarray:
    """VBench's subject consistency on features [N, T, D]: max(0, cos) to previous and first frame,
    [N].
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-8)
    previous = np.maximum((unit[:, 1:] * unit[:, :-1]).sum(-1), 0)
    first = np.maximum((unit[:, 1:] * unit[:, :1]).sum(-1), 0)
    return ((previous + first) / 2).mean(axis=1)
