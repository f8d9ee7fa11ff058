"""Claims, answered from numbers: holds, does not hold, not distinguishable, not run, or not
answerable here.

A table's `claims.yaml` has groups of claims; a claim is one or more comparisons, each evaluated
for every combination of the values of `each`, which replace {name}::

    heading: what stands above the claims where they have no groups of their own
    groups:
      - title: Few steps
        claims:
          - id: cd_above_dmd
            sentence: "..."
            where: "Table 2, Total"
            each: {steps: [1, 2, 4]}
            by_construction: true      # no result could contradict it: it checks the code
            requires: [teacher_on_top] # preconditions, by their ids
            comparisons:
              - {better: "causal_cd-{steps}/stage3/total", than: "causal_dmd-{steps}/stage3/total"}

`preconditions.yaml` is written the same way: what must be true of a world before its answers mean
anything about the paper. Its `scales` are those at which it is asked. A claim is not answerable
where a precondition that it requires is not seen to hold.

A comparison says `greater` (>) or `at_least` (>=) of the numbers as they are, or `better` or
`no_worse` in the direction of the column; the other side is `than`, which may be taken `times`
(1). A side is a number, an address (frame.py), or addresses joined by " + " and " - ". As no
interval can show an equality, `no_worse` may be asked `within` an amount: falling short by less
than that is no worse (a non-inferiority margin).

A comparison supports its claim when its whole 95% interval lies on the right side, contradicts it
when the whole interval lies on the wrong one, and is undecided otherwise (also without an
interval). How the interval is made is said in `intervals.py`. A claim holds when all its
comparisons support it, does not hold when any contradicts it, is not run when a number is missing,
and is not distinguishable otherwise. "Holds" needs no correction for many comparisons, since all
must pass; "does not hold" is uncorrected, so its numbers should be read.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiments.runs.config import nearest
from sweeps.report.intervals import NOT_RUN, Estimate, Numbers, Term, number, shown
from sweeps.report.layout import Layout

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "not distinguishable"
NOT_ANSWERABLE = "not answerable here"
VERBS = {"greater": ">", "at_least": "≥", "better": ">", "no_worse": "≥"}
TURNED = {">": "<", "≥": "≤"}


@dataclass(frozen=True)
class Answer:
    """A comparison with what was measured (None: not run) and what that says about the claim."""

    label: str
    margin: Estimate | None
    verdict: str


@dataclass(frozen=True)
class Verdict:
    """A claim and its answer; `unmet` are the required preconditions that do not hold."""

    id: str
    sentence: str
    where: str
    verdict: str
    answers: Sequence[Answer]
    unmet: Sequence[Verdict] = ()

    @property
    def seeds(self) -> int:
        """Number of trainings (seeds) behind the least supported comparison; 0 when none was made,
        or none depends on a training.
        """
        known = [a.margin.seeds for a in self.answers if a.margin and a.margin.seeds]
        return min(known, default=0)

    @property
    def hardest(self) -> Answer | None:
        """The answer that decides: the smallest margin among those with the claim's verdict."""
        deciding = [a for a in self.answers if a.verdict == self.verdict and a.margin]
        return min(deciding, key=lambda a: a.margin.value, default=None)


@dataclass(frozen=True)
class Group:
    """Claims under one title; `constructed` of them are true by construction."""

    title: str
    verdicts: Sequence[Verdict]
    constructed: int = 0
    preconditions: bool = False


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a weighted sum of numbers and a constant."""

    terms: Sequence[Term]
    constant: float = 0.0

    @classmethod
    def read(cls, said: str | float) -> Side:
        """From a number, an address, or a sum of addresses."""
        if not isinstance(said, str):
            return cls([], float(said))
        first, *rest = re.split(r" ([+-]) ", said)
        signs = {"+": 1.0, "-": -1.0}
        pairs = zip(rest[::2], rest[1::2], strict=True)
        return cls([(1.0, first), *((signs[sign], address) for sign, address in pairs)])


def comparisons(claim: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A claim's comparisons, once for every combination of `each`.

    Raises:
        ValueError: a comparison has not one verb and `than`, or has another key than `times` and,
            beside `no_worse`, `within`.
    """
    each = claim.get("each") or {}
    found = []
    for values in itertools.product(*each.values()):
        names = dict(zip(each, values, strict=True))
        for said in claim["comparisons"]:
            verbs = [key for key in said if key in VERBS]
            rest = set(said) - set(verbs)
            known = {"than", "times", *(["within"] if verbs == ["no_worse"] else [])}
            if len(verbs) != 1 or not {"than"} <= rest <= known:
                raise ValueError(
                    f"claims.yaml, {claim['id']}: a comparison has one of {', '.join(VERBS)}, than"
                    f" and at most times (no_worse also within), not {', '.join(said)}"
                )
            found.append({key: filled(value, names) for key, value in said.items()})
    return found


def filled(value: Any, names: Mapping[str, Any]) -> Any:
    """A text with {name} replaced; anything else as it is."""
    return value.format(**names) if isinstance(value, str) else value


def judge(
    claims: Mapping[str, Any], numbers: Numbers, preconditions: Mapping[str, Any] | None = None
) -> list[Group]:
    """The preconditions and every claim, answered from `numbers`.

    Raises:
        ValueError: a comparison is not written as it should be, or asks a cell that is not there; a
            claim requires a precondition that is not there.
    """
    first = [
        replace(group, preconditions=True) for group in _groups(preconditions or {}, numbers, {})
    ]
    asked = {verdict.id: verdict for group in first for verdict in group.verdicts}
    return [*first, *_groups(claims, numbers, asked)]


def _groups(said: Mapping[str, Any], numbers: Numbers, asked: Mapping[str, Verdict]) -> list[Group]:
    return [
        Group(
            group.get("title", ""),
            [_verdict(claim, numbers, asked) for claim in group["claims"]],
            sum(bool(claim.get("by_construction")) for claim in group["claims"]),
        )
        for group in said.get("groups", ())
    ]


def _verdict(claim: Mapping[str, Any], numbers: Numbers, asked: Mapping[str, Verdict]) -> Verdict:
    answers = [_answer(said, claim["id"], numbers) for said in comparisons(claim)]
    where = claim["where"]
    if claim.get("by_construction"):
        where += "; true by construction: a check of the code"
    verdict = combine([answer.verdict for answer in answers])
    unmet = _unmet(claim, asked)
    if unmet and verdict != NOT_RUN:
        known = any(precondition.verdict != NOT_RUN for precondition in unmet)
        verdict = NOT_ANSWERABLE if known else NOT_RUN
    return Verdict(claim["id"], claim["sentence"], where, verdict, answers, unmet)


def _unmet(claim: Mapping[str, Any], asked: Mapping[str, Verdict]) -> list[Verdict]:
    """What the claim requires and is not seen to hold; nothing where no preconditions are asked."""
    required = claim.get("requires", ()) if asked else ()
    for id in required:
        if id not in asked:
            raise ValueError(
                f"claims.yaml, {claim['id']}: requires {id!r}, which preconditions.yaml does not"
                f" have{nearest(id, asked)}"
            )
    return [asked[id] for id in required if asked[id].verdict != HOLDS]


def _answer(said: Mapping[str, Any], claim: str, numbers: Numbers) -> Answer:
    verb = next(key for key in said if key in VERBS)
    times = float(said.get("times", 1))
    left, right = Side.read(said[verb]), Side.read(said["than"])
    sign = 1
    if verb in ("better", "no_worse"):
        sign = _direction([*left.terms, *right.terms], claim, numbers.layout)
    within = float(said.get("within", 0))
    label = _label(left, right, verb, times, sign, numbers)
    if within:
        label += f" {'−' if sign > 0 else '+'} {number(within)}"
    terms = [*left.terms, *((-times * weight, address) for weight, address in right.terms)]
    margin = numbers.estimate(terms)
    if margin is None:
        return Answer(label, None, NOT_RUN)
    margin = margin.shifted(left.constant - times * right.constant).scaled(sign)
    margin = margin.shifted(within)
    return Answer(label, margin, verdict_of(margin, verb in ("greater", "better")))


def _direction(terms: Sequence[Term], claim: str, layout: Layout) -> int:
    """1 where more is better, -1 where less is; all terms are of one column or curve."""
    ids = {re.split("[@:]", address.rpartition("/")[2])[0] for _, address in terms}
    known = layout.columns | layout.curves
    if len(ids) != 1 or not ids <= set(known):
        raise ValueError(
            f"claims.yaml, {claim}: what is better is known of a column or curve, one in a "
            f"comparison, not of {', '.join(sorted(ids))}; say greater or at_least"
        )
    return known[ids.pop()].sign


def verdict_of(margin: Estimate, strict: bool) -> str:
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


def _label(left: Side, right: Side, verb: str, times: float, sign: int, numbers: Numbers) -> str:
    """Both sides by name and number; what they are of stands once where it is the same."""
    relation = VERBS[verb] if sign > 0 else TURNED[VERBS[verb]]
    factor = f"{number(times)} × " if times != 1 else ""
    of = {numbers.name(address)[1] for _, address in [*left.terms, *right.terms]}
    same = len(of) == 1
    head = f"{of.pop()}: " if same else ""
    return f"{head}{_side(left, numbers, same)} {relation} {factor}{_side(right, numbers, same)}"


def _side(side: Side, numbers: Numbers, same: bool) -> str:
    texts = [] if side.terms else [number(side.constant)]
    for weight, address in side.terms:
        cell, what = numbers.name(address)
        column = numbers.layout.columns.get(address.rpartition("/")[2])
        value = shown(numbers.estimate([(1.0, address)]), column)
        sign = ("− " if weight < 0 else "+ ") if texts else ""
        texts.append(f"{sign}{cell} {value}{'' if same else f' ({what})'}")
    return " ".join(texts)
