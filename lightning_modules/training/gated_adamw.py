"""AdamW over several networks, of which only the ones whose turn it is move.

Lightning's DeepSpeed strategy takes one optimizer, DMD trains two networks. Merging both into one
ordinary Adam is silently wrong: momentum, weight decay and the step counter of the waiting network
go on. Skipping its parameter group makes the update bit-equal to two independent AdamW.
"""

from collections.abc import Callable
from typing import Any

import torch


class GatedAdamW(torch.optim.AdamW):
    """AdamW that leaves groups with ``active: False`` entirely alone (state, decay, step count).

    The closure runs first and with all groups in place, so that ``zero_grad`` and clipping inside
    it reach every network; ``requires_grad`` keeps gradients away from those that wait.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A fused AdamW says that it undoes a gradient scaler's work, and Lightning then refuses to
        # clip. bfloat16 has no scaler, so there is nothing to undo.
        self._step_supports_amp_scaling = False

    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One update of the active groups; returns what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        everyone = self.param_groups
        self.param_groups = [group for group in everyone if group.get("active", True)]
        try:
            if self.param_groups:
                super().step()
        finally:
            self.param_groups = everyone
        return loss
