"""Stage 2 left out: the multi-step AR diffusion model itself starts Stage 3."""

from typing import Any

from torch import Tensor

from lightning_modules.training.stage import Stage


class ARDiffusion(Stage):
    """Trains nothing: the Stage-1 student is handed on as it is (Table 2, "AR diffusion").

    Its recipe has no steps. Asked to train all the same, it refuses.
    """

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Refuse.

        Raises:
            ValueError: always; the recipe must say ``steps: 0``.
        """
        raise ValueError("ARDiffusion trains nothing: set fit.steps to 0 in its recipe")
