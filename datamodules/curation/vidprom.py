"""VidProM (Wang & Yang 2024, arXiv 2403.06098) and prompt lists: the training prompts of Stage 3.

Two forms: VidProM's own table (uuid, prompt, time and six NSFW
probabilities), and a text file with one prompt a line, such as Self Forcing's
``vidprom_filtered_extended.txt``.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from datamodules.curation.refusal import Refusal
from datamodules.curation.split import number_of
from datamodules.curation.text_lists import read_lines, read_records, words_in
from lightning_modules.ranges import PositiveInt, UnitInterval

UNSAFE = ("toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit")
REQUIRED = ("uuid", "prompt")


@dataclass(frozen=True)
class Prompt:
    """A prompt as written.

    Args:
        name: its uuid, or ``line-17``.
        text: stripped, otherwise unchanged.
        unsafe: the largest of its probabilities, if all are; 0 in a text file, which has none.
        unscored: what is wrong with those that are none; empty where all are numbers in 0..1.
    """

    name: str
    text: str
    unsafe: float = 0.0
    unscored: str = ""

    @property
    def normalised(self) -> str:
        """Normal form for deduplication: ignores case, punctuation, spaces and Unicode width."""
        folded = unicodedata.normalize("NFKC", self.text).casefold()
        kept = (c if unicodedata.category(c)[0] in "LNM" else " " for c in folded)
        return " ".join("".join(kept).split()) or self.text

    @cached_property
    def key(self) -> str:
        """Sixteen hex digits of the normalised text: key of split, order and sample."""
        return f"{number_of('prompt', self.normalised):016x}"


@dataclass(frozen=True)
class PromptLimits:
    """Which prompts are accepted.

    Args:
        words: least and most (`text_lists.words_in`); beyond 512 tokens the encoder truncates.
        unsafe: most; a row of a table without all six probabilities is refused. None accepts every
            one, and a text file has none to refuse.
    """

    words: tuple[PositiveInt, PositiveInt]
    unsafe: UnitInterval | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.words[0] <= self.words[1]:
            raise ValueError(f"limits.words: {self.words} is no range; write [least, most]")
        if self.unsafe is not None and not 0 <= self.unsafe <= 1:
            raise ValueError(f"limits.unsafe: {self.unsafe} is no probability, 0..1")


def read_prompts(path: Path) -> Iterator[Prompt | Refusal]:
    """Prompts of a ``.csv`` or a text file, one at a time, and the records that are none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a table without a needed column, or as `text_lists`; names file and line.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; give VidProM_unique.csv, or a text file with one prompt a line"
        )
    if path.suffix.lower() == ".csv":
        yield from _read_table(path)
        return
    for number, line in read_lines(path):
        if text := line.strip():
            yield Prompt(f"line-{number}", text)


def accept(
    prompts: Iterable[Prompt | Refusal], limits: PromptLimits, refused: list[Refusal]
) -> Iterator[Prompt]:
    """The prompts within limits, each text once (the first); appends the others to `refused`."""
    seen: dict[str, str] = {}
    for prompt in prompts:
        why = prompt if isinstance(prompt, Refusal) else _refusal(prompt, limits, seen)
        if why is not None:
            refused.append(why)
        else:
            seen[prompt.key] = prompt.name
            yield prompt


def _refusal(prompt: Prompt, limits: PromptLimits, seen: Mapping[str, str]) -> Refusal | None:
    words, (least, most) = words_in(prompt.text), limits.words
    if not least <= words <= most:
        return Refusal(prompt.name, "words", f"{words} are not {least}..{most}")
    if limits.unsafe is not None and prompt.unscored:
        return Refusal(prompt.name, "unsafe: no score", prompt.unscored)
    if limits.unsafe is not None and not prompt.unsafe <= limits.unsafe:
        return Refusal(prompt.name, "unsafe", f"{prompt.unsafe:.3f} is above {limits.unsafe:g}")
    if prompt.key in seen:
        return Refusal(prompt.name, "duplicate", f"of {seen[prompt.key]}")
    return None


def _read_table(path: Path) -> Iterator[Prompt | Refusal]:
    cure = "use VidProM_unique.csv, or a .txt file with one prompt a line"
    for record in read_records(path, REQUIRED, cure):
        name = record.values.get("uuid") or f"line-{record.line}"
        if record.problem:
            yield Refusal(name, "table: fields", record.problem)
        else:
            yield Prompt(name, record.values["prompt"].strip(), *_unsafe(record.values))


def _unsafe(values: Mapping[str, str]) -> tuple[float, str]:
    """The largest probability of a row, and what is wrong with those that are none."""
    found = {name: _probability(values.get(name, "")) for name in UNSAFE}
    unscored = ", ".join(
        f"{name} is {values[name]!r}" if name in values else f"no column {name}"
        for name, value in found.items()
        if math.isnan(value)
    )
    return max(found.values()), unscored


def _probability(text: str) -> float:
    """NaN unless it is a number in 0..1."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if 0 <= number <= 1 else math.nan
