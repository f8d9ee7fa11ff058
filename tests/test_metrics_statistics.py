import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.metrics.statistics import (
    bootstrap_interval,
    kendall,
    resample_weights,
    slope,
    spread_interval,
)


def test_bootstrap_matches_the_standard_error_and_is_seeded():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap_interval(values, 0)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert bootstrap_interval(values, 0) == (low, high)
    with_gaps = np.r_[values, np.full(100, np.nan)]
    assert bootstrap_interval(with_gaps, 0) == (low, high)


def test_bootstrap_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.exponential(1.0, 100), seed, resamples=300)
        held += low <= 1.0 <= high
    assert 0.87 <= held / 200 <= 0.99


def test_weights_are_counts():
    weights = resample_weights(50, 30, 0)
    assert weights.shape == (30, 50) and np.all(weights.sum(axis=1) == 50)


def test_no_finite_value_is_refused():
    with pytest.raises(ValueError, match="no finite value"):
        bootstrap_interval(np.array([np.nan]), 0)


@given(st.floats(-5, 5), st.integers(4, 20))
@settings(max_examples=30, deadline=None)
def test_the_slope_of_a_line(by, length):
    assert slope(2 + by * np.arange(length)) == pytest.approx(by, abs=1e-9)


def test_the_slope_is_that_of_scipy_for_each_curve_of_a_stack():
    curves = np.random.default_rng(0).normal(size=(3, 5, 8))
    expected = [[stats.theilslopes(curve, np.arange(8))[0] for curve in row] for row in curves]
    assert slope(curves) == pytest.approx(np.array(expected))


def test_the_slope_ignores_one_outlier_and_tau_is_zero_without_a_trend():
    curve = np.arange(20.0)
    assert kendall(curve) == pytest.approx(1) and kendall(-curve) == pytest.approx(-1)
    curve[4] = 500
    assert slope(curve) == pytest.approx(1, abs=0.05)
    assert kendall(np.ones(8)) == 0


def test_spread_interval_is_centred_and_never_negative():
    low, high = spread_interval(5.0, np.array([7.0, 9.0, 8.0]))
    assert low + high == pytest.approx(10)
    assert spread_interval(0.1, np.array([0.0, 5.0]))[0] == 0
    low, high = spread_interval(0.1, np.array([0.0, 5.0]), least=-np.inf)
    assert low + high == pytest.approx(0.2)
