"""AdamW over several networks with alternating updates: inactive parameter groups are skipped.

Lightning's DeepSpeed strategy takes one optimizer, but DMD trains two networks. One ordinary Adam
for both is silently wrong: momentum, weight decay and the step counter of the inactive network
advance. Skipping its parameter group makes updates bit-equal to two independent AdamW.

The protocol of alternating updates:

    group["name"]      the role of the group's network; absent: the student
    group["active"]    whether this step updates the group; absent: True. Set before each step by
                       ``DistributionMatching.on_train_batch_start``; read by ``GatedAdamW.step``,
                       and for logging by ``Stage`` and by the DeepSpeed strategy
    ``Stage.student_updated``   whether this step updates the student; read by ``StudentEMA``, whose
                       average advances with the student only
"""

from collections.abc import Callable
from typing import Any

import torch


class GatedAdamW(torch.optim.AdamW):
    """AdamW that skips groups with ``active: False`` (state, weight decay, step count).

    The closure runs first and with all groups in place, so that ``zero_grad`` and clipping inside
    it reach every network; inactive networks get no gradient because of ``requires_grad``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A fused AdamW declares that it unscales gradients, and Lightning then refuses to clip.
        # bfloat16 has no gradient scaler, so there is nothing to unscale.
        self._step_supports_amp_scaling = False

    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One update of the active groups; returns what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        all_groups = self.param_groups
        self.param_groups = [group for group in all_groups if group.get("active", True)]
        try:
            if self.param_groups:
                super().step()
        finally:
            self.param_groups = all_groups
        return loss
