"""A few kills at random places; ``faults.py`` does twenty and more by hand."""

import random

import pytest
from faults import Disturbed, results, undisturbed

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_kills_at_random_change_nothing(cluster, tmp_path):
    for name in ("expected", "runs"):
        (tmp_path / name).mkdir()
    sweep = Disturbed(cluster, tmp_path / "runs", 4, random.Random(3))
    sweep.run()
    assert sweep.killed.total() == 4, "the sweep was over too soon"
    assert results(tmp_path / "runs") == undisturbed(tmp_path / "expected")
