"""No Stage 2: Stage 3 is initialised with the multi-step AR diffusion model."""

from typing import Any

from torch import Tensor

from lightning_modules.training.stage import Stage


class ARDiffusion(Stage):
    """Trains nothing: the Stage-1 student is handed on unchanged (Causal Forcing++, Table 2)."""

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Refuse to train.

        Raises:
            ValueError: always; the recipe must have ``fit.steps: 0``.
        """
        raise ValueError("ARDiffusion trains nothing: set fit.steps to 0 in its recipe")
