"""What a measurement says: times, operations and bytes, and the share of the roofline reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from experiments.bench.clock import Timing
from experiments.bench.count import Work
from experiments.bench.device import Peak


class Said(Protocol):
    """An entry of the report: `Row`, `Facts`."""

    def as_dict(self, peak: Peak) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Row:
    """A measurement with its roofline.

    Args:
        name: of the measured action.
        timing: of it.
        least_s: the roofline: seconds that no implementation on this device can beat.
        work: operations and bytes of the device, recomputation included.
        model: operations that the algorithm needs, for MFU; None where that is the same.
        more: further values, by name with unit.
    """

    name: str
    timing: Timing
    least_s: float
    work: Work
    model: float | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def as_dict(self, peak: Peak) -> dict[str, Any]:
        seconds = self.timing.typical
        needed = self.work.operations if self.model is None else self.model
        return {
            "name": self.name,
            **self.timing.as_dict(),
            "operations": self.work.operations,
            "bytes": self.work.bytes,
            "roofline_s": self.least_s,
            "share_of_roofline": self.least_s / seconds,
            "mfu": needed / seconds / peak.matmul_flops,
            **self.more,
        }


@dataclass(frozen=True)
class Facts:
    """A row without a roofline.

    Args:
        name: of it.
        found: values, by name with unit.
    """

    name: str
    found: dict[str, Any]

    def as_dict(self, peak: Peak) -> dict[str, Any]:
        return {"name": self.name, **self.found}


@dataclass(frozen=True)
class Task:
    """An independent measurement: its failure does not affect other tasks.

    Args:
        name: of its row, such as ``rollout/2/fused``; its rows' names begin so if it has several.
        rows: sets up and measures, beside the device's peak.
    """

    name: str
    rows: Callable[[Peak], Iterable[Said]]
