"""What the camera did since the frame before, as a part of a frame's modulation.

Attention under PRoPE has to find the frame before among all that it sees; this says the motion
itself, as the action embedding of HY-WorldPlay's "dual action" does for keys, but for any motion.
"""

import torch
from torch import Tensor, nn


class MotionEmbedder(nn.Module):
    """Two layers on the numbers of a matrix, zero at first, float32 even under autocast.

    Args:
        width: of the network.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(16, width), nn.Linear(width, 6 * width)
        nn.init.zeros_(self.linear_2.weight)
        nn.init.zeros_(self.linear_2.bias)

    def forward(self, motion: Tensor) -> Tensor:
        """[B, N, 4, 4] float32, zero at rest -> [B, N, 6, D]."""
        with torch.autocast(motion.device.type, enabled=False):
            hidden = nn.functional.silu(self.linear_1(motion.flatten(2)))
            return self.linear_2(hidden).unflatten(-1, (6, -1))
