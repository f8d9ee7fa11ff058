"""The paper's statements about Table 2, answered from our numbers.

Answers: holds, does not hold, not distinguishable, not run.

The relations a claim may use are in `relations.py`; each becomes a list of comparisons.
A comparison supports its claim when its whole 95% interval lies on the right side, contradicts it
when the whole interval lies on the wrong one, and is undecided otherwise (also without an
interval). How the interval is made (paired over seeds, else over prompts) is said in `evidence.py`.
A claim holds when all its comparisons support it, does not hold when any contradicts it, is not run
when a number is missing, and is not distinguishable otherwise. "Holds" needs no correction for many
comparisons, since all must pass; "does not hold" is uncorrected, so its numbers should be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from omegaconf import OmegaConf

from sweeps.report.intervals import Margin, Numbers
from sweeps.report.relations import Comparison, compare

HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "does not hold", "not distinguishable", "not run"


@dataclass(frozen=True)
class Answer:
    """A comparison with what was measured (None: not run) and what that says about the claim."""

    label: str
    margin: Margin | None
    verdict: str


@dataclass(frozen=True)
class Verdict:
    """A claim and its answer."""

    id: str
    sentence: str
    where: str
    verdict: str
    answers: Sequence[Answer]

    @property
    def seeds(self) -> int:
        """Of how many trainings the least supported comparison knows; 0 when none was made, or
        none of them is about a training.
        """
        known = [a.margin.seeds for a in self.answers if a.margin and a.margin.seeds]
        return min(known, default=0)

    @property
    def hardest(self) -> Answer | None:
        """The answer that decides: the smallest margin among those with the claim's verdict."""
        deciding = [a for a in self.answers if a.verdict == self.verdict and a.margin]
        return min(deciding, key=lambda a: a.margin.value, default=None)


@lru_cache(maxsize=1)
def load_claims() -> list[dict]:
    """The claims of `claims.yaml`."""
    return OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("claims.yaml")))["claims"]


def answer(comparison: Comparison, numbers: Numbers) -> Answer:
    """What the numbers say about one comparison."""
    margin = numbers.combine(comparison.terms)
    if margin is None:
        return Answer(comparison.label, None, NOT_RUN)
    margin = margin.scaled(comparison.sign).shifted(comparison.constant)
    return Answer(comparison.label, margin, verdict_of(margin, comparison.strict))


def verdict_of(margin: Margin, strict: bool) -> str:
    """What a margin says, where positive is right; zero is so too unless it is `strict`."""
    if margin.low is None:
        return UNDECIDED
    if margin.low > 0 or (margin.low == 0 and not strict):
        return HOLDS
    return FAILS if margin.high < 0 else UNDECIDED


def combine(verdicts: Sequence[str]) -> str:
    """The verdict on a claim from those on its comparisons: all must hold, any may refute."""
    for decisive in (FAILS, NOT_RUN, UNDECIDED):
        if decisive in verdicts:
            return decisive
    return HOLDS


def judge(claims: Sequence[Mapping], numbers: Numbers) -> list[Verdict]:
    """Every claim answered from `numbers`."""
    verdicts = []
    for claim in claims:
        answers = [answer(comparison, numbers) for comparison in compare(claim, numbers.layout)]
        verdict = combine([a.verdict for a in answers])
        verdicts.append(Verdict(claim["id"], claim["sentence"], claim["where"], verdict, answers))
    return verdicts
