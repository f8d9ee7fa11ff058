"""How frames look: flicker, sharpness, noise and background, in closed form (no weights).

Flicker and background consistency reward frozen and blurred clips, so they are never read alone;
sharpness and noise are two-sided (`nearness` to the real value), since noise is sharp too.

Arrays: videos uint8 [N, T, H, W, 1]; centres float [N, T, 2] px of the digit; values float [N] or
    [N, T].
"""

import numpy as np

SEEN = 8.0  # gray levels at which background noise becomes visible: scale of the two-sided measure
CLEARANCE = 10  # px, half the square around a digit that is not background (8) and its soft edge
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # of SSIM (Wang et al. 2004)


def flicker(videos: np.ndarray) -> np.ndarray:
    """VBench's temporal flickering: 1 - mean absolute difference of neighbouring frames / 255,
    [N].
    """
    frames = videos[..., 0].astype(np.int16)
    return 1 - np.abs(np.diff(frames, axis=1)).mean(axis=(1, 2, 3)) / 255


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


def background(videos: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Mask of pixels away from the digit, bool [N, T, H, W]."""
    height, width = videos.shape[2:4]
    across = np.abs(np.arange(width) + 0.5 - centres[..., 0, None]) > CLEARANCE
    down = np.abs(np.arange(height) + 0.5 - centres[..., 1, None]) > CLEARANCE
    return across[..., None, :] | down[..., :, None]


def noise(videos: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Root mean square of the background (black in the real world), gray levels, [N, T]."""
    square = (videos[..., 0].astype(np.float32) ** 2) * mask
    return np.sqrt(square.sum(axis=(-1, -2)) / np.maximum(mask.sum(axis=(-1, -2)), 1))


def background_consistency(videos: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """VBench's rule with SSIM of the background instead of the CLIP cosine, [N].

    For frame t >= 1 the mean of max(0, ssim) to the previous and to the first frame, averaged.
    """
    frames = videos[..., 0].astype(np.float32)
    previous = _similarity(frames[:, 1:], frames[:, :-1], mask[:, 1:] & mask[:, :-1])
    first = _similarity(frames[:, 1:], frames[:, :1], mask[:, 1:] & mask[:, :1])
    return ((np.maximum(previous, 0) + np.maximum(first, 0)) / 2).mean(axis=1)


def consistency(features: np.ndarray) -> np.ndarray:
    """VBench's subject consistency on features [N, T, D]: max(0, cos) to previous and first frame,
    [N].
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-8)
    previous = np.maximum((unit[:, 1:] * unit[:, :-1]).sum(-1), 0)
    first = np.maximum((unit[:, 1:] * unit[:, :1]).sum(-1), 0)
    return ((previous + first) / 2).mean(axis=1)


def nearness(values: np.ndarray, real: float) -> np.ndarray:
    """1 at the real value, less on both sides: 1 - |log(x / x_real)|, at least 0."""
    return np.clip(1 - np.abs(np.log(np.maximum(values, 1e-6) / real)), 0, 1)


def _similarity(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """SSIM over one window, the masked pixels: [N, T] of [N, T, H, W]."""
    count = np.maximum(mask.sum(axis=(-1, -2)), 1)

    def mean(values: np.ndarray) -> np.ndarray:
        return (values * mask).sum(axis=(-1, -2)) / count

    m1, m2 = mean(first), mean(second)
    v1, v2 = mean(first**2) - m1**2, mean(second**2) - m2**2
    joint = mean(first * second) - m1 * m2
    return ((2 * m1 * m2 + _C1) * (2 * joint + _C2)) / ((m1**2 + m2**2 + _C1) * (v1 + v2 + _C2))
