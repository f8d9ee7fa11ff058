"""Wan with a second time: the mean velocity between two noise levels (MeanFlow, arXiv 2505.13447).

``u(x_t, t, r)`` is the mean of the velocity on the ODE's way from t to r <= t, so that
``x_r = x_t - (t - r) u``. Called without ``until`` it is asked for r = 0, the jump to data: then
``x_t - t u`` is a consistency model's answer, and samplers, rollouts and distribution matching use
the network as it is. Asked for ``until = t`` it gives the velocity itself.
"""

from copy import deepcopy
from functools import wraps
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightning_modules.networks.wan.transformer import Wan


class TwoTimeWan(Wan):
    """A `Wan` whose time embedding is a sum of two: of t, and of the span t - r.

    The arguments are Wan's.
    """

    two_times = True
    _keep_in_fp32_modules = [*Wan._keep_in_fp32_modules, "span_embedder"]

    @wraps(Wan.__init__)
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.span_embedder = _silent_copy(self.condition_embedder.time_embedder)

    @classmethod
    def of(cls, net: Wan) -> Self:
        """The network around the weights of ``net``, shared; it answers as that for every r."""
        arguments = {key: value for key, value in net.config.items() if not key.startswith("_")}
        with torch.device("meta"):
            made = cls(**arguments)
        span = _silent_copy(net.condition_embedder.time_embedder).state_dict()
        weights = net.state_dict() | {f"span_embedder.{name}": each for name, each in span.items()}
        made.load_state_dict(weights, assign=True)
        made.gradient_checkpointing = net.gradient_checkpointing
        return made

    def with_second_time(self) -> Self:
        """Itself."""
        return self

    def _embed_levels(self, t: Tensor, until: Tensor | None) -> Tensor:
        span = t if until is None else t - until
        return super()._embed_levels(t, None) + self._embed_level(self.span_embedder, span)


def with_second_time(student: nn.Module) -> Any:
    """A network with a second time, of which it is silent until trained; the weights are shared.

    Raises:
        ValueError: it offers none.
    """
    if not hasattr(student, "with_second_time"):
        raise ValueError(
            f"needs.student: a {type(student).__name__} offers no second time, which mean flow"
            " trains; give it a Wan"
        )
    return student.with_second_time()


def _silent_copy(embedder: nn.Module) -> nn.Module:
    """A copy of a time embedder whose last layer is zero.

    With all of its weights zero it would stay so: neither layer would receive a gradient.
    """
    copy = deepcopy(embedder)
    nn.init.zeros_(copy.linear_2.weight)
    nn.init.zeros_(copy.linear_2.bias)
    return copy
