"""A few kills at random places; ``faults.py`` does twenty and more by hand."""

import random
import time

import pytest
from faults import Disturbed, results, undisturbed
from test_slurm_sweeps import job, saved, start, wait

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_kills_at_random_change_nothing(cluster, tmp_path):
    for name in ("expected", "runs"):
        (tmp_path / name).mkdir()
    sweep = Disturbed(cluster, tmp_path / "runs", 4, random.Random(3))
    sweep.run()
    assert sweep.killed.total() == 4, "the sweep was over too soon"
    assert results(tmp_path / "runs") == undisturbed(tmp_path / "expected")


def test_daemons_may_be_gone_for_a_while(cluster, tmp_path):
    runner = start(tmp_path, 0.5)
    wait(lambda: saved(job(tmp_path, "base")[1]))
    for name in ("slurmctld", "node1"):
        cluster.kill(name)
    time.sleep(1.5)
    for name in ("slurmctld", "node1"):
        cluster.start(name)
    assert "7 runs executed" in runner.communicate(timeout=120)[0]
