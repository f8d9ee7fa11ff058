"""The statements of `statements.yaml`, answered from the numbers.

A comparison ``greater > times x than`` supports its statement when its whole 95% interval lies on
the right side, contradicts it when the whole interval lies on the wrong one, and is undecided
otherwise; what follows for the statement is the same rule as for the claims about Table 2
(`report/claims.py`): all must hold, any may refute, and no interval is corrected for the number of
comparisons.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sweeps.report.claims import NOT_RUN, Answer, Verdict, combine, verdict_of
from sweeps.report.theory.numbers import INITS, TheoryNumbers, number, shown

FILE = Path(__file__).with_name("statements.yaml")
KEYS = {"greater", "than", "times"}
NAMES = INITS | {"law": "the law", "real": "real", "true": "with the pair", "false": "without"}


@dataclass(frozen=True)
class Group:
    """Statements under one title; `constructed` of them are true by construction."""

    title: str
    verdicts: Sequence[Verdict]
    constructed: int = 0


@lru_cache(maxsize=1)
def load_statements() -> list[dict[str, Any]]:
    """The groups of `statements.yaml`."""
    return OmegaConf.to_container(OmegaConf.load(FILE))["groups"]


def judge(groups: Sequence[Mapping[str, Any]], numbers: TheoryNumbers) -> list[Group]:
    """Every statement answered.

    Raises:
        ValueError: a comparison is not written as it should be, or asks a cell that no sweep has.
    """
    return [
        Group(
            group["title"],
            [_verdict(s, numbers) for s in group["statements"]],
            sum(bool(s.get("by_construction")) for s in group["statements"]),
        )
        for group in groups
    ]


def comparisons(statement: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A statement's comparisons, once for every combination of `each`.

    Raises:
        ValueError: a comparison has other keys than `greater`, `than`, `times`, or lacks one.
    """
    each = statement.get("each") or {}
    found = []
    for values in itertools.product(*each.values()):
        names = dict(zip(each, values, strict=True))
        for comparison in statement["comparisons"]:
            if not {"greater", "than"} <= set(comparison) <= KEYS:
                raise ValueError(
                    f"{FILE.name}, {statement['id']}: a comparison has greater, than and at most"
                    f" times, not {', '.join(comparison)}"
                )
            found.append({key: _filled(value, names) for key, value in comparison.items()})
    return found


def _verdict(statement: Mapping[str, Any], numbers: TheoryNumbers) -> Verdict:
    answers = [_answer(comparison, numbers) for comparison in comparisons(statement)]
    verdict = combine([answer.verdict for answer in answers])
    where = statement["where"]
    if statement.get("by_construction"):
        where += "; true by construction: a check of the code"
    return Verdict(statement["id"], statement["sentence"], where, verdict, answers)


def _answer(comparison: Mapping[str, Any], numbers: TheoryNumbers) -> Answer:
    times = comparison.get("times", 1)
    sides = [(1.0, comparison["greater"]), (-float(times), comparison["than"])]
    known = sum(weight * side for weight, side in sides if not isinstance(side, str))
    asked = [(weight, side) for weight, side in sides if isinstance(side, str)]
    label = _label(comparison, numbers)
    margin = numbers.difference(asked)
    if margin is None:
        return Answer(label, None, NOT_RUN)
    margin = margin.shifted(known)
    return Answer(label, margin, verdict_of(margin, strict=True))


def _label(comparison: Mapping[str, Any], numbers: TheoryNumbers) -> str:
    """Both sides by name and number."""
    times = comparison.get("times", 1)
    factor = f"{number(times)} × " if times != 1 else ""
    left, right = (_side(comparison[key], numbers) for key in ("greater", "than"))
    return f"{left} > {factor}{right}"


def _side(side: str | float, numbers: TheoryNumbers) -> str:
    if not isinstance(side, str):
        return number(side)
    cell, name = name_of(side)
    return f"{cell} {shown(numbers.margin(side))}{name}"


def name_of(address: str) -> tuple[str, str]:
    """What an address is called in a sentence: the cell, and the metric after its number."""
    world, cell, run, metric = address.split("/")
    who, *rest = cell.split("-")
    who = NAMES.get(who, who)
    counted = "step" if world == "switching" else "interval"
    rest = [_counted(word, counted) if word.isdigit() else word for word in rest]
    stage = " after Stage 3" if run == "after" else ""
    return f"{world}: {', '.join([who, *rest])}{stage}", f" ({metric.removeprefix('law.')})"


def _counted(count: str, what: str) -> str:
    return f"{count} {what}{'' if count == '1' else 's'}"


def _filled(value: Any, names: Mapping[str, Any]) -> Any:
    return value.format(**names) if isinstance(value, str) else value
