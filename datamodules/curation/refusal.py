"""Rejections: why an item was left out of a set, stored with the set and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


class Refused(Exception):
    """Raised to reject a video or prompt.

    Args:
        reason: a category to count by, such as ``too short``.
        detail: what was found, in a sentence.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Refusal:
    """One line of ``refused.csv``: a rejected item and the reason."""

    name: str
    reason: str
    detail: str = ""


def counted(refused: Iterable[Refusal]) -> str:
    """Rejections by reason, such as ``12 too short, 3 damaged``."""
    counts = Counter(each.reason for each in refused).most_common()
    return ", ".join(f"{count} {reason}" for reason, count in counts) or "none"
