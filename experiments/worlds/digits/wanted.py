"""What the captions of clips ask for, as arrays."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.worlds.digits.trajectory import HEADINGS, SPEEDS

DIGITS = 10


@dataclass(frozen=True)
class Wanted:
    """Attributes in N captions: digit int [N], heading int [N] (-1 still), speed int [N]."""

    digit: np.ndarray
    heading: np.ndarray
    speed: np.ndarray

    @classmethod
    def of(cls, attributes: list[dict[str, Any]]) -> "Wanted":
        """From samples' `attributes` {digit, direction, speed}.

        Raises:
            ValueError: an attribute is missing or unknown; names the clip.
        """
        rows = []
        for number, a in enumerate(attributes):
            try:
                direction = a["direction"]
                heading = -1 if direction is None else HEADINGS.index(direction)
                rows.append((int(a["digit"]), heading, SPEEDS.index(a["speed"])))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"clip {number}: attributes {a!r} are not those of the tiny world "
                    "(digit 0..9, direction, speed): sample from its prompts"
                ) from error
        return cls(*(np.array(column) for column in zip(*rows, strict=True)))

    @property
    def moving(self) -> np.ndarray:
        """Bool [N]."""
        return self.speed > 0

    def indicators(self) -> np.ndarray:
        """One-hot digit, heading (none if still) and speed side by side, float64 [N, 17]."""
        kinds = ((self.digit, DIGITS), (self.heading, len(HEADINGS)), (self.speed, len(SPEEDS)))
        columns = [values[:, None] == np.arange(count) for values, count in kinds]
        return np.concatenate(columns, axis=1).astype(float)
