"""References followed here mean what OmegaConf says they mean; what is more is left to it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.runs import config as layers
from experiments.runs.interpolation import Intricate, follow
from sweeps.plan.graph import load_sweep

PATHS = st.sampled_from(["a", "b", "a.b", "b.a", "a.b.a", "c", "c.0", "c.1", "c.7", "no"])
TEXTS = st.one_of(
    st.text("ab $\\{}.?_", max_size=6),
    st.just("???"),
    PATHS.map("${{{}}}".format),
    PATHS.map("${{ {} }}".format),
    st.tuples(PATHS, PATHS).map(lambda pair: "${{{}}}/x${{{}}}".format(*pair)),
    PATHS.map("\\${{${{{}}}}}".format),
)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(-2, 2), TEXTS)
VALUES = st.recursive(
    LEAVES,
    lambda below: st.one_of(
        st.dictionaries(st.sampled_from("abc"), below, max_size=3), st.lists(below, max_size=2)
    ),
    max_leaves=6,
)


@given(st.fixed_dictionaries({name: VALUES for name in "abc"}))
def test_what_is_followed_is_what_omegaconf_says(tree):
    try:
        followed = follow(tree, tree)
    except Intricate:
        return
    resolved = OmegaConf.to_container(OmegaConf.create(tree), resolve=True, throw_on_missing=True)
    assert followed == resolved and repr(followed) == repr(resolved)


@pytest.mark.parametrize("value", ["${no}", "${a.no}", "${c.9}", "${oc.env:HOME}", "${.b}", "???"])
def test_the_rest_is_omegaconfs(value):
    tree = {"a": {"b": 1}, "c": [1], "d": value}
    with pytest.raises(Intricate):
        follow(tree, tree["d"])
    if value != "${oc.env:HOME}":
        with pytest.raises(OmegaConfBaseException):
            OmegaConf.to_container(OmegaConf.create(tree), resolve=True, throw_on_missing=True)


def test_a_circle_is_no_endless_loop():
    with pytest.raises(Intricate):
        follow({"a": "${b}", "b": "${a}"}, "${a}")


def test_what_is_followed_shares_nothing_with_its_tree():
    tree = {"a": {"b": [1]}, "c": "${a}"}
    followed = follow(tree, tree["c"])
    followed["b"].append(2)
    assert tree["a"] == {"b": [1]}


def test_our_recipes_need_no_more_than_plain_references(monkeypatch):
    """What keeps planning quick, said without a clock: 1,000 cells are planned in a second."""
    monkeypatch.setattr(layers, "OmegaConf", None)  # what is intricate would need it
    assert len(load_sweep("ablation", "tiny", [0, 1]).runs) > 100


def test_equal_requests_share_one_run_whatever_asks_for_them():
    first, second = (load_sweep("ablation", "tiny", [0]).runs for _ in range(2))
    assert list(first) == list(second)
    runs = load_sweep("ablation", "tiny", [0, 0]).runs
    assert len(runs) == len(first)
