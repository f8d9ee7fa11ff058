"""What a metric is, and the list of all of them: id -> kind, scope, direction, unit, needs.

The first word of an id is its suite: `world` evaluates clips of the tiny world with a probe, `law`
compares clips and students with a law known in closed form, `room` walks with their renderer,
`speed` times a student, `videos` measures mp4 files, and `vbench` and `vision_reward` prepare or
read the results of external benchmarks on real videos. A metric declares what it needs, a view what
it offers; `all` means every metric whose needs the view offers.

A metric is `exact` (a measured quantity under its own name) or a `proxy` (an analogue of a
benchmark; it never bears the benchmark's name). Its scope is `sample` (one number per clip,
averaged) or `set` (one number for all clips together). A metric that cannot be computed for some
clips is skipped with a reason; it never becomes a zero.
"""

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """One column: `compute` maps a View to a Measurement."""

    id: str
    name: str
    kind: Literal["exact", "proxy"]
    scope: Literal["sample", "set"]
    higher_is_better: bool | None  # None: neither; closer to the real clips' value is better
    unit: str
    needs: tuple[str, ...]
    compute: Callable[[Any], "Measurement"]


@dataclass(frozen=True)
class Measurement:
    """The result of one metric for a set of clips.

    Attributes:
        value: the number, or None when skipped.
        n: clips that it rests on.
        interval: 95%, over prompts; None where there is none.
        per_clip: float [N] with NaN where the metric does not apply; None for set-wise metrics.
        extra: further numbers to store, e.g. a slope's tau.
        curves: further lists to store in curves.json, e.g. one number per frame.
        skipped: why there is no value.
    """

    value: float | None
    n: int
    interval: tuple[float, float] | None = None
    per_clip: np.ndarray | None = None
    extra: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    skipped: str | None = None


class NotApplicable(ValueError):
    """Raised by a metric that is not defined for these clips; the message is the reason."""


METRICS: dict[str, Metric] = {}


def metric(
    id: str,
    name: str,
    scope: Literal["sample", "set"],
    unit: str,
    higher_is_better: bool | None = True,
    needs: tuple[str, ...] = ("probe",),
    kind: Literal["exact", "proxy"] = "proxy",
) -> Callable[[Callable[[Any], Measurement]], Callable[[Any], Measurement]]:
    """Register the decorated function under `id`."""

    def register(compute: Callable[[Any], Measurement]) -> Callable[[Any], Measurement]:
        assert id not in METRICS, id
        METRICS[id] = Metric(id, name, kind, scope, higher_is_better, unit, needs, compute)
        return compute

    return register


def selected(names: str | Iterable[str], offers: Collection[str]) -> list[Metric]:
    """The metrics that a recipe names, in registry order; `all` is every one that can be computed.

    Args:
        names: ids, or `all`.
        offers: inputs that the view has; a metric is computed when they include all its needs.

    Raises:
        ValueError: an unknown id, or one that needs what is not offered.
    """
    answered = [metric for metric in METRICS.values() if set(metric.needs) <= set(offers)]
    if names == "all":
        return answered
    names = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        known = ", ".join(metric.id for metric in answered)
        raise ValueError(f"score.metrics: no metric {unknown[0]!r}; there are 'all' and {known}")
    for name in names:
        if missing := [need for need in METRICS[name].needs if need not in offers]:
            raise ValueError(
                f"score.metrics: {name} needs {', '.join(missing)}, which this recipe does not"
                " have among its needs"
            )
    return [metric for metric in answered if metric.id in names]


def measure(view: Any, metrics: Iterable[Metric]) -> list[tuple[Metric, Measurement]]:
    """Compute metrics of a view; one that is not applicable gives its reason instead."""
    found = []
    for metric in metrics:
        try:
            found.append((metric, metric.compute(view)))
        except NotApplicable as reason:
            log.warning("%s skipped: %s", metric.id, reason)
            found.append((metric, Measurement(None, 0, skipped=str(reason))))
    return found
