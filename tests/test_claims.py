"""The claims' evaluator: its truth table, and the paper's own numbers through it."""

import io
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from synthetic_sweep import make_sweep

from sweeps.report.assemble import our_table, paper_table
from sweeps.report.claims import (
    FAILS,
    HOLDS,
    NOT_RUN,
    UNDECIDED,
    answer,
    combine,
    judge,
    load_claims,
)
from sweeps.report.collect import collect
from sweeps.report.intervals import Margin, OurNumbers, PaperNumbers, exact
from sweeps.report.layout import load_yaml
from sweeps.report.page import page
from sweeps.report.relations import RELATIONS, Comparison, compare
from sweeps.report.render import MARK, badge, margin_text, markdown_claims, rich_claims
from sweeps.report.results import Results

LAYOUT = load_yaml("columns.yaml")
CLAIMS = {claim["id"]: claim for claim in load_claims()}


def _numbers(margin):
    return SimpleNamespace(layout=LAYOUT, combine=lambda terms: margin)


def _printed(**changes):
    """A printed table with five equal rows but for `changes`: "init@steps" -> total."""
    rows = {
        steps: {init: [changes.get(f"{init}_{steps}", 80.0)] for init in LAYOUT["rows"]}
        for steps in (1, 2, 4)
    }
    return PaperNumbers({"blocks": rows, "order": ["total"]}, LAYOUT)


def _verdict(expression, numbers):
    claim = {"id": "c", "sentence": "", "where": "", "expression": expression}
    return judge([claim], numbers)[0].verdict


def test_the_papers_own_numbers():
    verdicts = judge(load_claims(), PaperNumbers(load_yaml("paper.yaml"), LAYOUT))
    assert {v.id: v.verdict for v in verdicts} == {i: c["expect"] for i, c in CLAIMS.items()}
    said = [v.verdict for v in verdicts]
    assert (said.count(HOLDS), said.count(FAILS), said.count(NOT_RUN)) == (10, 1, 2)
    refuted = next(v for v in verdicts if v.verdict == FAILS)
    assert refuted.hardest.margin.value == pytest.approx(5.412 - 5.464)


def test_the_papers_numbers_as_a_run_sweep_answer_the_same_scores(tmp_path):
    results = collect(make_sweep(tmp_path, clips=False), tmp_path)
    found = {v.id: v.verdict for v in judge(load_claims(), OurNumbers(results, LAYOUT))}
    # Per-clip noise is far below the printed gaps except 83.10 against 83.14-like ones.
    for claim in ("sf_ode_worst", "ar_falls_furthest", "cd_above_dmd", "cd_stores_nothing"):
        assert found[claim] == HOLDS
    assert found["ode_stores"] == HOLDS and found["cd_costs_a_fraction"] == HOLDS


@pytest.mark.parametrize(
    ("low", "high", "strict", "verdict"),
    [
        (0.1, 2.0, True, HOLDS),
        (-2.0, -0.1, True, FAILS),
        (-0.1, 2.0, True, UNDECIDED),
        (0.0, 0.0, True, UNDECIDED),  # a tie proves no strict order
        (0.0, 0.0, False, HOLDS),  # but it is "at least"
        (-0.1, 2.0, False, UNDECIDED),
        (-2.0, -0.1, False, FAILS),
        (None, None, True, UNDECIDED),
    ],
)
def test_judging_one_comparison(low, high, strict, verdict):
    comparison = Comparison("c", [], strict=strict)
    margin = Margin(0.0 if low is None else (low + high) / 2, low, high, "t over seeds", 3)
    assert answer(comparison, _numbers(margin)).verdict == verdict


def test_the_sign_turns_the_interval_round():
    said = answer(Comparison("c", [], sign=-1.0, constant=1.0), _numbers(Margin(3, 2, 5, "t")))
    assert (said.margin.value, said.margin.low, said.margin.high) == (-2, -4, -1)
    assert said.verdict == FAILS


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ([HOLDS, HOLDS], HOLDS),
        ([HOLDS, UNDECIDED], UNDECIDED),
        ([HOLDS, NOT_RUN, UNDECIDED], NOT_RUN),
        ([HOLDS, FAILS, NOT_RUN], FAILS),
    ],
)
def test_combining_comparisons(parts, verdict):
    assert combine(parts) == verdict
    assert combine(parts[::-1]) == verdict


def test_worst_and_best():
    worst = {"worst": "causal_ode", "in": ["total"], "at": [1, 2, 4]}
    low = {f"causal_ode_{s}": 70.0 for s in (1, 2, 4)}
    assert _verdict(worst, _printed(**low)) == HOLDS
    assert _verdict(worst, _printed()) == UNDECIDED
    assert _verdict(worst, _printed(**low, causal_cd_2=60.0)) == FAILS
    best = {"best": "causal_ode", "in": ["total"], "at": [1]}
    assert _verdict(best, _printed(causal_ode_1=90.0)) == HOLDS
    assert _verdict(best, _printed(**low)) == FAILS


def test_falls_most_looks_at_the_difference_not_the_level():
    falls = {"falls_most": "ar_diffusion", "in": ["total"], "from": 4, "to": 1}
    assert _verdict(falls, _printed(ar_diffusion_4=90.0, ar_diffusion_1=85.0)) == HOLDS
    assert _verdict(falls, _printed(ar_diffusion_4=60.0, ar_diffusion_1=60.0)) == UNDECIDED
    assert _verdict(falls, _printed(ar_diffusion_1=78.0, causal_cd_1=70.0)) == FAILS


def test_missing_numbers_are_not_run():
    expression = {"worst": "causal_ode", "in": ["fd_pairs"], "at": [1]}
    assert _verdict(expression, _printed()) == NOT_RUN
    assert _verdict({"at_least": ["causal_cd", "causal_ode"], "in": ["total"], "at": [8]},
                    _printed()) == NOT_RUN  # fmt: skip


def test_lower_is_better_columns_turn_round(tmp_path):
    results = collect(make_sweep(tmp_path, clips=False), tmp_path)
    numbers = OurNumbers(results, LAYOUT)
    better = {"better": ["causal_cd", "self_forcing_ode"], "in": ["fd_pairs"], "at": [1, 2, 4]}
    assert _verdict(better, numbers) == HOLDS
    better["better"] = better["better"][::-1]
    assert _verdict(better, numbers) == FAILS


def test_one_noisy_seed_more_does_not_decide(tmp_path):
    """Two close arms over three noisy seeds are not distinguishable."""
    results = collect(make_sweep(tmp_path, seeds=(0, 1, 2), noise=2.0, clips=False), tmp_path)
    expression = {"better": ["causal_cd", "causal_ode"], "in": ["total"], "at": [4]}
    assert _verdict(expression, OurNumbers(results, LAYOUT)) == UNDECIDED


def test_early_and_late(tmp_path):
    """Made-up curves fall from a shared start, faster for causal DMD: late yes, early no."""
    results = collect(make_sweep(tmp_path, seeds=(0, 1), clips=False), tmp_path)
    (verdict,) = judge([CLAIMS["dmd_sharper_early_drifts"]], OurNumbers(results, LAYOUT))
    early, late = verdict.answers
    assert early.verdict == FAILS and late.verdict == HOLDS
    assert verdict.verdict == FAILS
    # fd: decay * (1 + t / 2) over frames 0..7; first quarter 0, 1; last quarter 6, 7
    gap = (84.10 - 83.49) / 100
    assert late.margin.value == pytest.approx(gap * (6.5 - 0.5) / 2)


def test_curves_of_one_seed_without_intervals_decide_nothing(tmp_path):
    results = collect(make_sweep(tmp_path, clips=False), tmp_path)
    (verdict,) = judge([CLAIMS["dmd_sharper_early_drifts"]], OurNumbers(results, LAYOUT))
    assert verdict.verdict == UNDECIDED
    assert "one seed, no interval" in margin_text(verdict)


def test_every_answer_says_how_many_seeds_it_rests_on(tmp_path):
    for seeds, words in (((0,), "(1 seed)"), ((0, 1), "(2 seeds)")):
        runs = tmp_path / str(len(seeds))
        results = collect(make_sweep(runs, seeds, clips=False), runs)
        numbers = OurNumbers(results, LAYOUT)
        verdicts = judge(load_claims(), numbers)
        assert all(badge(v) == f"{MARK[v.verdict]} {v.verdict} {words}" for v in verdicts)
        console = Console(width=300, file=io.StringIO())
        console.print(rich_claims(verdicts))
        shown = page("t", numbers, our_table(results, "tiny"), paper_table(), verdicts)
        for text in (markdown_claims(verdicts), console.file.getvalue(), shown):
            assert text.count(words) == len(CLAIMS)
    unrun = judge(load_claims(), OurNumbers(Results({}), LAYOUT))
    assert {badge(v) for v in unrun} == {"· not run"}


@pytest.mark.parametrize(
    "expression", [{}, {"wurst": "causal_cd"}, {"worst": "a", "best": "b"}, {"worst": "causal_cd"}]
)
def test_a_wrong_expression_is_named(expression):
    with pytest.raises(ValueError, match="claims.yaml, mine"):
        compare({"id": "mine", "expression": expression}, LAYOUT)


def test_every_relation_is_used_by_a_claim_and_every_claim_is_complete():
    used = {name for claim in CLAIMS.values() for name in claim["expression"] if name in RELATIONS}
    assert used == set(RELATIONS)
    for claim in CLAIMS.values():
        assert claim["sentence"].endswith(".") and claim["where"] and claim["expect"] in MARK
    assert len(CLAIMS) == len(load_claims())


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(-5, 5), st.floats(-10, 10))
def test_margins_scale_and_shift_with_their_ends(value, half, factor, amount):
    margin = Margin(value, value - half, value + half, "t").scaled(factor).shifted(amount)
    assert margin.low <= margin.value + 1e-6 and margin.value <= margin.high + 1e-6
    assert margin.high - margin.low == pytest.approx(2 * half * abs(factor), abs=1e-3)
    assert exact(value).scaled(factor).low == exact(value).scaled(factor).high
