"""Motion in pixels, from classical optical flow: VBench's rules with DIS instead of RAFT.

Classical flow follows the true speed of a moving digit from 32 px upwards (Kroeger et al. 2016),
but sees motion in noise too, hence the gate: a pair counts only when both frames look real.

Arrays: videos uint8 [N, T, H, W, 1]; magnitudes float [N, T-1] in px/frame.
"""

from dataclasses import dataclass

import cv2
import numpy as np

TOP = 0.05  # share of the fastest pixels whose mean is a pair's motion (VBench dynamic_degree)


@dataclass(frozen=True)
class DynamicRule:
    """Constants of VBench's dynamic degree for clips of some size.

    Attributes:
        interval: stride of the kept frames, so that about 8 per second remain.
        frames: how many remain.
        threshold: px; a pair above it counts as moving.
        pairs: number of moving pairs from which a clip is dynamic.
    """

    interval: int
    frames: int
    threshold: float
    pairs: int

    @classmethod
    def of(cls, frames: int, height: int, width: int, fps: float) -> "DynamicRule":
        """The rule for a clip of `frames` at `fps`."""
        interval = max(1, round(fps / 8))
        kept = len(range(0, frames, interval))
        return cls(interval, kept, 6.0 * min(height, width) / 256, round(4 * kept / 16))


def fastest(videos: np.ndarray) -> np.ndarray:
    """Mean magnitude of the fastest 5% of pixels between neighbouring frames, float32 [N, T-1]."""
    flow = _flow()
    clips, length, height, width = videos.shape[:4]
    top = int(TOP * height * width)
    magnitudes = np.empty((clips, length - 1, height * width), np.float32)
    for n in range(clips):
        for t in range(length - 1):
            field = flow.calc(videos[n, t, ..., 0], videos[n, t + 1, ..., 0], None)
            magnitudes[n, t] = np.hypot(field[..., 0], field[..., 1]).ravel()
    return np.partition(magnitudes, -top, axis=-1)[..., -top:].mean(axis=-1)


def dynamic(
    magnitudes: np.ndarray, rule: DynamicRule, counts: np.ndarray | None = None
) -> np.ndarray:
    """Which clips are dynamic, bool [N].

    Args:
        magnitudes: of neighbouring kept frames [N, rule.frames - 1].
        rule: the constants.
        counts: bool [N, rule.frames], frames that count; None: all (the raw rule).
    """
    moving = magnitudes > rule.threshold
    if counts is not None:
        moving &= counts[:, :-1] & counts[:, 1:]
    return moving.sum(axis=1) >= rule.pairs


def _flow() -> cv2.DISOpticalFlow:
    cv2.setNumThreads(1)  # bit-equal results, and the pool's other workers keep their core
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
