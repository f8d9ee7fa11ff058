"""What a viewer can change while a session runs; each acts on the block that is made next."""

from dataclasses import dataclass
from typing import Any, Literal

from lightning_modules.ranges import SolverSteps

How = Literal["keep", "rewrite", "cut"]


@dataclass(frozen=True)
class NewPrompt:
    """Another prompt.

    Args:
        text: the prompt.
        how: what becomes of the context (``session.py``).
    """

    text: str
    how: How = "rewrite"

    def as_dict(self) -> dict[str, Any]:
        """As recordings have it."""
        return {"prompt": self.text, "how": self.how}


@dataclass(frozen=True)
class NewSteps:
    """Another number of sampling steps."""

    steps: SolverSteps

    def as_dict(self) -> dict[str, Any]:
        """As recordings have it."""
        return {"steps": self.steps}


Event = NewPrompt | NewSteps
