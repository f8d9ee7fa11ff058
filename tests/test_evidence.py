"""Statistics of the table: intervals, pairing, missing measurements."""

import json

import numpy as np
import pytest
from synthetic_sweep import CLIPS, make_sweep, numbers_of, row_of, table_of

from sweeps.report.intervals import over_prompts, t_interval
from sweeps.report.results import read_scores

GAP = [(1.0, "causal_cd-2/stage3/total"), (-1.0, "causal_ode-2/stage3/total")]


def test_null_and_nan_values_count_as_not_measured(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text(
        '{"metric": "a", "value": null, "n": 3}\n{"metric": "b", "value": NaN, "n": 3}\n'
        '{"metric": "c", "value": 0.0, "n": 3}\n'
    )
    assert set(read_scores(path)) == {"c"}


def _score_run(numbers, seed):
    return numbers.frame.place("causal_cd-2/stage3").scored[seed]


def test_two_seeds_use_paired_differences_over_seeds(tmp_path):
    sweep = make_sweep(tmp_path, seeds=(0, 1, 2), noise=0.3, clips=False)
    numbers = numbers_of(sweep, tmp_path)
    cd, ode = (numbers.frame.values(address) for _, address in GAP)
    by_hand = [cd[seed].value - ode[seed].value for seed in (0, 1, 2)]
    margin = numbers.estimate(GAP)
    half = 4.302652729911275 * np.std(by_hand, ddof=1) / 3**0.5  # t(0.975, 2 degrees)
    assert margin.seeds == 3
    assert margin.value == pytest.approx(np.mean(by_hand))
    assert margin.high - margin.value == pytest.approx(half)
    assert row_of(table_of(sweep, tmp_path), 2, "causal_cd").n == f"3 × {CLIPS}"


def test_one_seed_pairs_prompts_when_it_can(tmp_path):
    paired = numbers_of(make_sweep(tmp_path / "a", clips=False), tmp_path / "a")
    apart = make_sweep(tmp_path / "b", clips=False, per_clip=False)
    close, wide = paired.estimate(GAP), numbers_of(apart, tmp_path / "b").estimate(GAP)
    assert close.method == "bootstrap over prompts" and wide.method == "intervals combined"
    assert close.value == pytest.approx(wide.value)
    assert close.high - close.low < 0.2  # what the prompts share cancels
    assert wide.value - wide.low == pytest.approx((0.5**2 + 0.7**2) ** 0.5)


def test_other_prompts_are_not_paired(tmp_path):
    numbers = numbers_of(make_sweep(tmp_path, clips=False), tmp_path)
    clips = _score_run(numbers, 0).per_clip
    clips["key"] = clips["key"][::-1]
    assert numbers.estimate(GAP).method == "intervals combined"


def test_clips_to_which_a_metric_does_not_apply_are_left_out(tmp_path):
    numbers = numbers_of(make_sweep(tmp_path, clips=False), tmp_path)
    _score_run(numbers, 0).per_clip["world.total"][[3, 60]] = np.nan  # opposite ends: same mean
    margin = numbers.estimate(GAP[:1])
    assert margin.method == "bootstrap over prompts"
    assert margin.low < margin.value < margin.high


def test_one_training_without_an_interval_decides_nothing(tmp_path):
    numbers = numbers_of(make_sweep(tmp_path, clips=False), tmp_path)
    margin = numbers.estimate([(1.0, "causal_cd-2/stage3/fd_by_frame@late")])
    assert margin.low is None and margin.method == "one seed, no interval"


def test_a_metric_that_was_skipped_says_so(tmp_path):
    sweep = make_sweep(tmp_path, clips=False)
    path = tmp_path / sweep.cells[0].runs["stage3"].name / "scores.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0] |= {"value": None, "ci95": None, "n": 0, "skipped": "no calibration"}
    path.write_text("\n".join(map(json.dumps, lines)))
    shown = row_of(table_of(sweep, tmp_path), 1, "self_forcing_ode")
    assert shown.entries["total"].text == "skipped"
    assert shown.entries["quality"].margin is not None


def test_entries_like_the_best_are_marked_by_the_paired_difference(tmp_path):
    shown = table_of(make_sweep(tmp_path, clips=False, per_clip=False), tmp_path)
    ode = row_of(shown, 4, "causal_ode").entries["total"]
    far = row_of(shown, 4, "self_forcing_ode").entries["total"]
    assert ode.rank == "second" and ode.like_best
    assert not far.like_best
    assert not row_of(shown, 4, "causal_cd").entries["total"].like_best


def test_intervals_against_known_values():
    assert t_interval([1.0, 3.0]) == pytest.approx((2 - 12.706204736, 2 + 12.706204736))
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = over_prompts(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert low < values.mean() < high
