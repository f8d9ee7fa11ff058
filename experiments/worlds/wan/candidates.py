"""Which items a set was begun with, so that a source may change while the set is made."""

import json
from collections.abc import Sequence
from pathlib import Path

from datamodules.atomic import write_text


class Candidates:
    """The names of a set's candidates, stored in its run folder (candidates.json).

    Shards are numbered parts of this list, so it is kept from the first begun shard on.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "candidates.json"
        self._shards = run / "shards"

    @property
    def cure(self) -> str:
        """What to do to begin with other candidates."""
        return f"remove {self._shards} to start again"

    def names(self, now: Sequence[str]) -> list[str]:
        """The stored names, or those of `now` if no shard was begun yet."""
        if any(self._shards.glob("*")) and self.path.is_file():
            return json.loads(self.path.read_text(encoding="utf-8"))
        write_text(self.path, json.dumps(list(now)))
        return list(now)
