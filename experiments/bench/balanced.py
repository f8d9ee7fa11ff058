"""Which outcomes of chance a training step is timed in, where there are many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isclose, lcm, prod

from lightning_modules.training.dry_run import Case


def balanced(cases: Sequence[Case]) -> list[Case]:
    """As few outcomes as have every value of each choice equally often, with their probabilities.

    With an exit among 2 steps, and one of the first block among 4, these are 4 of 8. A step's cost
    is a sum, each term of which depends on one choice (``tests/test_balanced.py`` counts it for
    every stage), so their mean is that of all outcomes. Choices that depend on each other, or whose
    values are not equally likely, keep all outcomes.
    """
    values: dict[str, list[int]] = {}
    for case in cases:
        for purpose, value in case.choices.items():
            if value not in values.setdefault(purpose, []):
                values[purpose].append(value)
    counts = [len(found) for found in values.values()]
    found = {tuple(sorted(case.choices.items())): case for case in cases}
    whole = prod(counts) == len(cases) == len(found) and all(
        len(case.choices) == len(values) and isclose(case.probability, 1 / len(cases))
        for case in cases
    )
    if not whole:
        return list(cases)
    few = lcm(*counts)
    wanted = [
        {purpose: known[turn % len(known)] for purpose, known in values.items()}
        for turn in range(few)
    ]
    return [
        replace(found[tuple(sorted(choices.items()))], probability=1 / few) for choices in wanted
    ]
