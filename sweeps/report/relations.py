"""What a claim's relation means: the comparisons it stands for.

A claim (`claims.yaml`) holds one relation. A relation becomes a list of comparisons, each a
weighted sum of cells that is positive when the claim is right (the sign follows the column's
direction), so one judgement serves all. R is the row named, q the value of a column with better
upwards, s a step count in `at`:

    worst: R            q(other, s) - q(R, s)                       > 0   for every other row
    best: R             q(R, s) - q(other, s)                       > 0   for every other row
    better: [A, B]      q(A, s) - q(B, s)                           > 0
    at_least: [A, B]    q(A, s) - q(B, s)                           >= 0
    steps_at_least: R   q(R, fewer) - q(R, more)                    >= 0
    falls_most: R       (q(R, from) - q(R, to)) - the same of other > 0   for every other row
    below: [R, ...]     limit - value(R, s)                         > 0   (value as printed)
    zero: [R, ...]      value(R, s) = 0
    cheaper: [A, B]     value(B, s) - times * value(A, s)           >= 0
    early_late: [A, B]  on curve `early` A is better than B in the first quarter of the frames,
                        and on curve `late` A loses more than B from the first quarter to the last
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from sweeps.report.intervals import Quantity, Row, Term


@dataclass(frozen=True)
class Comparison:
    """A weighted sum that is positive when the claim is right; `strict` tells > 0 from >= 0."""

    label: str
    terms: Sequence[Term]
    sign: float = 1.0
    constant: float = 0.0
    strict: bool = True


def _sign(layout: Mapping, name: str) -> float:
    return -1.0 if (layout["columns"] | layout["curves"])[name]["better"] == "lower" else 1.0


def _name(layout: Mapping, id: str) -> str:
    """What the table calls a column, a curve or a row."""
    entry = (layout["columns"] | layout["curves"]).get(id)
    return entry["heading"] if entry else layout["rows"][id]


def _sum(name: str, weights: Mapping[Row, float], stage: int = 3, part: str = "") -> list[Term]:
    return [Term(Quantity(name, stage, part), row, weight) for row, weight in weights.items()]


def _places(e: Mapping) -> Iterator[tuple[str, int]]:
    return product(e["in"], e["at"])


def _extreme(layout: Mapping, e: Mapping, row: str, sign: float) -> list[Comparison]:
    name = partial(_name, layout)
    return [
        Comparison(
            f"{name(column)}, {steps}-step: {name(row)} against {name(other)}",
            _sum(column, {(row, steps): 1.0, (other, steps): -1.0}),
            sign * _sign(layout, column),
        )
        for column, steps in _places(e)
        for other in layout["rows"]
        if other != row
    ]


def _pair(layout: Mapping, e: Mapping, rows: Sequence[str], strict: bool) -> list[Comparison]:
    name = partial(_name, layout)
    return [
        Comparison(
            f"{name(column)}, {steps}-step: {name(rows[0])} against {name(rows[1])}",
            _sum(column, {(rows[0], steps): 1.0, (rows[1], steps): -1.0}),
            _sign(layout, column),
            strict=strict,
        )
        for column, steps in _places(e)
    ]


def _steps_at_least(layout: Mapping, e: Mapping) -> list[Comparison]:
    name = partial(_name, layout)
    row, fewer, more = e["steps_at_least"], e["fewer"], e["more"]
    return [
        Comparison(
            f"{name(column)}: {name(row)}, {fewer}-step against {more}-step",
            _sum(column, {(row, fewer): 1.0, (row, more): -1.0}),
            _sign(layout, column),
            strict=False,
        )
        for column in e["in"]
    ]


def _falls_most(layout: Mapping, e: Mapping) -> list[Comparison]:
    name = partial(_name, layout)
    row, many, few = e["falls_most"], e["from"], e["to"]
    own = {(row, many): 1.0, (row, few): -1.0}
    return [
        Comparison(
            f"{name(column)}, fall from {many} to {few} steps: {name(row)} against {name(other)}",
            _sum(column, own | {(other, many): -1.0, (other, few): 1.0}),
            _sign(layout, column),
        )
        for column in e["in"]
        for other in layout["rows"]
        if other != row
    ]


def _below(layout: Mapping, e: Mapping) -> list[Comparison]:
    name = partial(_name, layout)
    return [
        Comparison(
            f"{name(column)}, {steps}-step: {name(row)} against the limit {e['limit']}",
            _sum(column, {(row, steps): 1.0}),
            -1.0,
            float(e["limit"]),
        )
        for column, steps in _places(e)
        for row in e["below"]
    ]


def _zero(layout: Mapping, e: Mapping) -> list[Comparison]:
    name = partial(_name, layout)
    return [
        Comparison(
            f"{name(column)}, {steps}-step: {name(row)} against 0",
            _sum(column, {(row, steps): 1.0}),
            -1.0,
            strict=False,
        )
        for column, steps in _places(e)
        for row in e["zero"]
    ]


def _cheaper(layout: Mapping, e: Mapping) -> list[Comparison]:
    name = partial(_name, layout)
    cheap, dear = e["cheaper"]
    return [
        Comparison(
            f"{name(column)}: {name(dear)} against {e['times']} times {name(cheap)}",
            _sum(column, {(dear, steps): 1.0, (cheap, steps): -float(e["times"])}),
            strict=False,
        )
        for column, steps in _places(e)
    ]


def _early_late(layout: Mapping, e: Mapping) -> list[Comparison]:
    name = partial(_name, layout)
    (a, b), stage, comparisons = e["early_late"], e["stage"], []
    for steps in e["at"]:
        arms = f"{steps}-step: {name(a)} against {name(b)}"
        a_less_b, b_less_a = ({(a, steps): s, (b, steps): -s} for s in (1.0, -1.0))
        fall = _sum(e["late"], a_less_b, stage, "early") + _sum(e["late"], b_less_a, stage, "late")
        early = _sum(e["early"], a_less_b, stage, "early")
        comparisons += [
            Comparison(
                f"{name(e['early'])}, first frames, {arms}",
                early,
                _sign(layout, e["early"]),
            ),
            Comparison(
                f"{name(e['late'])}, loss from first to last frames, {arms}",
                fall,
                _sign(layout, e["late"]),
            ),
        ]
    return comparisons


RELATIONS: dict[str, Callable[[Mapping, Mapping], list[Comparison]]] = {
    "worst": lambda layout, e: _extreme(layout, e, e["worst"], -1.0),
    "best": lambda layout, e: _extreme(layout, e, e["best"], 1.0),
    "better": lambda layout, e: _pair(layout, e, e["better"], strict=True),
    "at_least": lambda layout, e: _pair(layout, e, e["at_least"], strict=False),
    "steps_at_least": _steps_at_least,
    "falls_most": _falls_most,
    "below": _below,
    "zero": _zero,
    "cheaper": _cheaper,
    "early_late": _early_late,
}


def compare(claim: Mapping, layout: Mapping) -> list[Comparison]:
    """The comparisons that a claim's expression stands for.

    Raises:
        ValueError: no relation of that name, or an argument of it is missing (the claim is named).
    """
    expression = claim["expression"]
    found = [name for name in expression if name in RELATIONS]
    if len(found) != 1:
        raise ValueError(
            f"claims.yaml, {claim['id']}: the expression {dict(expression)} needs exactly one of "
            f"{', '.join(RELATIONS)}"
        )
    try:
        return RELATIONS[found[0]](layout, expression)
    except KeyError as error:
        raise ValueError(
            f"claims.yaml, {claim['id']}: relation {found[0]} lacks {error} or names no such column"
        ) from None
