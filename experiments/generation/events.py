"""What a viewer can change while a session runs; each acts on the block that is made next."""

from dataclasses import dataclass
from typing import Any, Literal

from datamodules.cameras import held
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


@dataclass(frozen=True)
class NewKeys:
    """Other keys are held, from now on; all that are, so that a release that is lost cannot stick.

    Args:
        keys: of `datamodules.cameras.MOTIONS`; kept sorted.

    Raises:
        ValueError: there is no such key.
    """

    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        keys = frozenset[str]().union(*map(held, self.keys))
        object.__setattr__(self, "keys", tuple(sorted(keys)))

    def as_dict(self) -> dict[str, Any]:
        """As recordings have it."""
        return {"keys": list(self.keys)}


Event = NewPrompt | NewSteps | NewKeys
