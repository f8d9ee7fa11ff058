"""VidProM (Wang & Yang 2024, arXiv 2403.06098) and prompt lists: the training prompts of Stage 3.

Two forms: VidProM's own table (uuid, prompt, time and six NSFW
probabilities), and a text file with one prompt a line, such as Self Forcing's
``vidprom_filtered_extended.txt``.
"""

from __future__ import annotations

import csv
import math
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datamodules.curation.refusal import Refusal
from datamodules.curation.split import number_of
from settings.ranges import PositiveInt, UnitInterval

UNSAFE = ("toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit")
REQUIRED = ("uuid", "prompt")


@dataclass(frozen=True)
class Prompt:
    """A prompt as written.

    Args:
        name: its uuid, or ``line-17``.
        text: stripped, otherwise unchanged.
        unsafe: the largest of its probabilities; NaN where the file has none.
    """

    name: str
    text: str
    unsafe: float = math.nan

    @property
    def normalised(self) -> str:
        """Normal form for deduplication: ignores case, punctuation, spaces and Unicode width."""
        folded = unicodedata.normalize("NFKC", self.text).casefold()
        kept = (c if unicodedata.category(c)[0] in "LNM" else " " for c in folded)
        return " ".join("".join(kept).split()) or self.text

    @property
    def key(self) -> str:
        """Sixteen hex digits of the normalised text: key of split, order and sample."""
        return f"{number_of('prompt', self.normalised):016x}"


@dataclass(frozen=True)
class PromptLimits:
    """Which prompts are accepted.

    Args:
        words: least and most; beyond 512 tokens the encoder truncates.
        unsafe: most; None accepts every one, as files without these columns do.
    """

    words: tuple[PositiveInt, PositiveInt]
    unsafe: UnitInterval | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.words[0] <= self.words[1]:
            raise ValueError(f"limits.words: {self.words} is no range; write [least, most]")


def read_prompts(path: Path) -> Iterator[Prompt]:
    """Prompts of a ``.csv`` or a text file, one at a time.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a table without a needed column; names it and those present.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; give VidProM_unique.csv, or a text file with one prompt a line"
        )
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        if path.suffix.lower() == ".csv":
            yield from _read_table(path, file)
            return
        for number, line in enumerate(file, 1):
            if text := line.strip():
                yield Prompt(f"line-{number}", text)


def accept(
    prompts: Iterable[Prompt], limits: PromptLimits, refused: list[Refusal]
) -> Iterator[Prompt]:
    """The prompts within limits, each text once (the first); appends the others to `refused`."""
    seen: dict[str, str] = {}
    for prompt in prompts:
        words = len(prompt.text.split())
        if not limits.words[0] <= words <= limits.words[1]:
            least, most = limits.words
            refused.append(Refusal(prompt.name, "words", f"{words} are not {least}..{most}"))
        elif limits.unsafe is not None and prompt.unsafe > limits.unsafe:
            found = f"{prompt.unsafe:.3f} is above {limits.unsafe:g}"
            refused.append(Refusal(prompt.name, "unsafe", found))
        elif prompt.key in seen:
            refused.append(Refusal(prompt.name, "duplicate", f"of {seen[prompt.key]}"))
        else:
            seen[prompt.key] = prompt.name
            yield prompt


def _read_table(path: Path, file: Iterable[str]) -> Iterator[Prompt]:
    table = csv.DictReader(file)
    present = table.fieldnames or []
    if missing := [name for name in REQUIRED if name not in present]:
        raise ValueError(
            f"{path}: no column {', '.join(map(repr, missing))}; it has"
            f" {', '.join(map(repr, present)) or 'none'}; use VidProM_unique.csv, or a .txt file"
            " with one prompt a line"
        )
    scores = [name for name in UNSAFE if name in present]
    for line in table:
        unsafe = max((_number(line[name]) for name in scores), default=math.nan)
        yield Prompt(line["uuid"] or "", (line["prompt"] or "").strip(), unsafe)


def _number(text: str | None) -> float:
    """A probability; 1 if invalid, so that an unreadable score counts as unsafe."""
    try:
        return float(text or "")
    except ValueError:
        return 1.0
