"""What the table may say of its numbers: intervals, pairing, what is not measured."""

import json

import numpy as np
import pytest
from synthetic_sweep import CLIPS, make_sweep, row_of

from sweeps.report.assemble import our_table
from sweeps.report.collect import collect
from sweeps.report.intervals import OurNumbers, Quantity, Term, bootstrap_interval, t_interval
from sweeps.report.layout import load_yaml
from sweeps.report.results import read_scores


def test_null_and_nan_values_count_as_not_measured(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text(
        '{"metric": "a", "value": null, "n": 3}\n{"metric": "b", "value": NaN, "n": 3}\n'
        '{"metric": "c", "value": 0.0, "n": 3}\n'
    )
    assert set(read_scores(path)) == {"c"}


def test_two_seeds_use_paired_differences_over_seeds(tmp_path):
    results = collect(make_sweep(tmp_path, seeds=(0, 1, 2), noise=0.3, clips=False), tmp_path)
    numbers = OurNumbers(results, load_yaml("columns.yaml"))
    rows = [("causal_cd", 2), ("causal_ode", 2)]
    terms = [Term(Quantity("total"), row, w) for row, w in zip(rows, (1.0, -1.0), strict=True)]
    by_hand = [
        results.cells[("causal_cd", 2, s)].stage3.scores["world.total"].value
        - results.cells[("causal_ode", 2, s)].stage3.scores["world.total"].value
        for s in (0, 1, 2)
    ]
    margin = numbers.combine(terms)
    half = 4.302652729911275 * np.std(by_hand, ddof=1) / 3**0.5  # t(0.975, 2 degrees)
    assert margin.seeds == 3
    assert margin.value == pytest.approx(np.mean(by_hand))
    assert margin.high - margin.value == pytest.approx(half)
    assert row_of(our_table(results, "tiny"), 2, "causal_cd").n == f"3 × {CLIPS}"


def test_one_seed_pairs_prompts_when_it_can(tmp_path):
    paired = collect(make_sweep(tmp_path / "a", clips=False), tmp_path / "a")
    apart = collect(make_sweep(tmp_path / "b", clips=False, per_clip=False), tmp_path / "b")
    terms = [
        Term(Quantity("total"), ("causal_cd", 2), 1.0),
        Term(Quantity("total"), ("causal_ode", 2), -1.0),
    ]
    layout = load_yaml("columns.yaml")
    close = OurNumbers(paired, layout).combine(terms)
    wide = OurNumbers(apart, layout).combine(terms)
    assert close.method == "bootstrap over prompts" and wide.method == "intervals combined"
    assert close.value == pytest.approx(wide.value)
    assert close.high - close.low < 0.2  # what the prompts share cancels
    assert wide.value - wide.low == pytest.approx((0.5**2 + 0.7**2) ** 0.5)


def test_other_prompts_are_not_paired(tmp_path):
    results = collect(make_sweep(tmp_path, clips=False), tmp_path)
    clips = results.cells[("causal_cd", 2, 0)].stage3.per_clip
    clips["key"] = clips["key"][::-1]
    rows = [("causal_cd", 1.0), ("causal_ode", -1.0)]
    terms = [Term(Quantity("total"), (init, 2), w) for init, w in rows]
    margin = OurNumbers(results, load_yaml("columns.yaml")).combine(terms)
    assert margin.method == "intervals combined"


def test_clips_to_which_a_metric_does_not_apply_are_left_out(tmp_path):
    results = collect(make_sweep(tmp_path, clips=False), tmp_path)
    run = results.cells[("causal_cd", 2, 0)].stage3
    run.per_clip["world.total"][[3, 60]] = np.nan  # opposite ends: the mean stays
    numbers = OurNumbers(results, load_yaml("columns.yaml"))
    margin = numbers.combine([Term(Quantity("total"), ("causal_cd", 2), 1.0)])
    assert margin.method == "bootstrap over prompts"
    assert margin.low < margin.value < margin.high


def test_a_metric_that_was_skipped_says_so(tmp_path):
    sweep = make_sweep(tmp_path, clips=False)
    path = tmp_path / sweep.cells[0].runs["stage3"].name / "scores.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0] |= {"value": None, "ci95": None, "n": 0, "skipped": "no calibration"}
    path.write_text("\n".join(map(json.dumps, lines)))
    shown = row_of(our_table(collect(sweep, tmp_path), "tiny"), 1, "self_forcing_ode")
    assert shown.entries["total"].text == "skipped"
    assert shown.entries["quality"].margin is not None


def test_entries_like_the_best_are_marked_by_the_paired_difference(tmp_path):
    wide = collect(make_sweep(tmp_path, clips=False, per_clip=False), tmp_path)
    shown = our_table(wide, "tiny")
    ode = row_of(shown, 4, "causal_ode").entries["total"]
    far = row_of(shown, 4, "self_forcing_ode").entries["total"]
    assert ode.rank == "second" and ode.like_best
    assert not far.like_best
    assert not row_of(shown, 4, "causal_cd").entries["total"].like_best


def test_intervals_against_known_values():
    assert t_interval([1.0, 3.0]) == pytest.approx((2 - 12.706204736, 2 + 12.706204736))
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = bootstrap_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert low < values.mean() < high
