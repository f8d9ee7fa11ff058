"""A few kills at random times; ``faults.py`` does twenty and more by hand."""

import random
import time

import pytest
from cluster import missing
from faults import PATH, SUBJECTS, disturb
from test_slurm_sweeps import job, saved, start, wait

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_kills_at_random_change_nothing(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    if reason := missing():
        pytest.skip(reason)
    monkeypatch.setenv("PYTHONPATH", PATH)
    assert disturb(SUBJECTS["counting"], tmp_path, 4, random.Random(3)).total() == 4


def test_daemons_may_be_gone_for_a_while(cluster, tmp_path):
    runner = start(tmp_path, 0.5)
    wait(lambda: saved(job(tmp_path, "base")[1]))
    for name in ("slurmctld", "node1"):
        cluster.kill(name)
    time.sleep(1.5)
    for name in ("slurmctld", "node1"):
        cluster.start(name)
    assert "7 runs executed" in runner.communicate(timeout=120)[0]
