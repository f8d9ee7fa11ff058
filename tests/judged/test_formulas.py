"""VBench's and VisionReward's formulas, against published numbers and by their properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vbench_files import PUBLISHED

from experiments.worlds.wan.benchmarks import (
    DIMENSIONS,
    WEIGHTS,
    composites,
    lacking,
    normalised,
    resampled,
    reward,
)

SCORES = st.fixed_dictionaries({name: st.floats(0, 1) for name in DIMENSIONS})


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_totals_come_out_of_published_dimensions(model):
    total, quality, semantic, *dimensions = PUBLISHED[model]
    scores = dict(zip(DIMENSIONS, np.array(dimensions) / 100, strict=True))
    found = composites(scores)
    # All are printed to 0.01; by that the dimensions lose at most 0.009 of Quality or Semantic.
    for name, printed in (("total", total), ("quality", quality), ("semantic", semantic)):
        assert 100 * found[name] == pytest.approx(printed, abs=0.014), name


@given(SCORES, SCORES, st.sampled_from(list(DIMENSIONS)))
def test_composites_are_weighted_means_of_normalised_dimensions(scores, other, name):
    found = composites(scores)
    assert found["total"] == pytest.approx((4 * found["quality"] + found["semantic"]) / 5)
    # Affine: the composite of a mixture is the mixture of the composites; nothing is clipped.
    mixed = composites({d: 0.3 * scores[d] + 0.7 * other[d] for d in DIMENSIONS})
    for composite, value in composites(other).items():
        assert mixed[composite] == pytest.approx(0.3 * found[composite] + 0.7 * value, abs=1e-9)
    # One dimension from min to max moves its composite by its share, and nothing else.
    about = DIMENSIONS[name]
    low, high = (composites(scores | {name: about[end]}) for end in ("min", "max"))
    share = {"quality": about["weight"] / 6.5, "semantic": about["weight"] / 9}[about["of"]]
    rest = {"quality": "semantic", "semantic": "quality"}[about["of"]]
    assert high[about["of"]] - low[about["of"]] == pytest.approx(share)
    assert high[rest] == low[rest]


def test_the_ends_of_the_scale():
    for end, value in (("min", 0.0), ("max", 1.0)):
        found = composites({name: about[end] for name, about in DIMENSIONS.items()})
        assert found == pytest.approx({"quality": value, "semantic": value, "total": value})
    assert normalised("scene", 0.9) > 1 and normalised("temporal_flickering", 0.5) < 0


@pytest.mark.parametrize("gone", DIMENSIONS)
def test_without_a_dimension_there_is_no_total(gone):
    scores = {name: about["max"] for name, about in DIMENSIONS.items() if name != gone}
    other = {"quality": "semantic", "semantic": "quality"}[DIMENSIONS[gone]["of"]]
    assert composites(scores) == {other: 1.0}
    assert lacking("total", scores) == [gone] and lacking(other, scores) == []


def test_a_prompt_is_drawn_with_all_its_videos_and_for_all_that_it_serves():
    rng = np.random.default_rng(0)
    videos = {f"{p}-{i}": v for p, v in enumerate(rng.normal(size=200)) for i in range(3)}
    prompts = {name: name.partition("-")[0] for name in videos}
    once = {name: value for name, value in videos.items() if name.endswith("-0")}
    found = resampled({"a": videos, "b": {n: 2 * v for n, v in videos.items()}}, prompts, 0)
    np.testing.assert_allclose(found["b"], 2 * found["a"])
    np.testing.assert_allclose(found["a"], resampled({"a": once, "b": once}, prompts, 0)["a"])
    error = np.std(list(once.values()), ddof=1) / math.sqrt(200)
    assert np.std(found["a"]) == pytest.approx(error, rel=0.1)
    apart = {"a": once, "b": {f"x{n}": v for n, v in once.items()}}
    apart = resampled(apart, prompts | {f"x{n}": f"x{n}" for n in once}, 0)
    assert abs(np.corrcoef(apart["a"], apart["b"])[0, 1]) < 0.1


def test_vision_reward_is_its_formula():
    assert len(WEIGHTS) == 29 and WEIGHTS.sum() == pytest.approx(6.27717, abs=1e-4)
    assert reward([1] * 29) == pytest.approx(0.216454, abs=1e-5) == -reward([-1] * 29)
