"""Timing a part of the outcomes of chance gives the expectation over all of them."""

from dataclasses import replace
from functools import cache
from math import lcm

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.bench.balanced import balanced
from experiments.bench.train import timed
from experiments.launch.stages import asked_of_networks
from experiments.runs.files import load_recipe
from experiments.runs.recipe import Resolver, recipes
from lightning_modules.training.dry_run import Case, outcomes


def cases_of(*choices):
    """Outcomes of choices, each a name and what it has values for, given those before."""

    def run(choose):
        made = {}
        for name, below in choices:
            made[name] = choose(name, below(made) if callable(below) else below)
        return made

    return [Case(probability, {}, made) for probability, made in outcomes(run)]


@given(st.lists(st.integers(1, 6), max_size=3))
def test_every_value_of_every_choice_comes_equally_often(counts):
    cases = cases_of(*((f"choice {at}", below) for at, below in enumerate(counts)))
    few = balanced(cases)
    assert len(few) == lcm(*counts) <= len(cases)
    assert sum(case.probability for case in few) == pytest.approx(1)
    for at, below in enumerate(counts):
        values = [case.choices[f"choice {at}"] for case in few]
        assert {values.count(value) for value in range(below)} == {len(few) // below}


def test_choices_that_depend_on_each_other_keep_all_outcomes():
    cases = cases_of(("first", 2), ("second", lambda made: 2 + made["first"]))
    assert balanced(cases) == cases and len(cases) == 5
    unequal = [replace(cases[0], probability=0.1), replace(cases[1], probability=0.9)]
    assert balanced(unequal) == unequal


@cache
def resolver(scale):
    return Resolver(scale)


TRAINED = [
    (scale, name)
    for scale in ("tiny", "wan1.3b")
    for name in recipes(resolver(scale).library, "fit")
    if "student" in load_recipe(resolver(scale).library.recipes, name)["needs"]
    if resolver(scale).has_sections_of(name)
]


def test_a_recipe_whose_budget_a_scale_lacks_is_no_row_there():
    assert ("tiny", "continued_base") in TRAINED and ("wan1.3b", "continued_base") not in TRAINED
    assert ("wan1.3b", "posed_base") in TRAINED and ("wan1.3b", "stage2_causal_cd") in TRAINED


@pytest.mark.parametrize(("scale", "name"), TRAINED)
def test_what_a_step_asks_of_its_networks_is_the_same_on_average(scale, name):
    """What allows it: each call is made or left out by one choice, whatever the others are."""
    recipe = timed(resolver(scale).resolve(name).recipe)
    if not recipe["fit"]["steps"]:
        pytest.skip("trains nothing")
    run = asked_of_networks(recipe)
    few = replace(run, steps={roles: tuple(balanced(cases)) for roles, cases in run.steps.items()})
    for roles, cases in run.steps.items():
        expected = run.expected(roles)
        assert few.expected(roles) == pytest.approx(expected)
        choices = {purpose for case in cases for purpose in case.choices}
        assert len(few.steps[roles]) < len(cases) or len(choices) < 2
