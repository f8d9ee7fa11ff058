"""Where shards are made together, another rank takes the place of a leader that is lost."""

import os
from types import SimpleNamespace

import pytest

from experiments.launch import execute as launch
from experiments.launch.execute import execute
from experiments.runs.folder import RunFolder
from experiments.runs.lock import Busy

RECIPE = "recipe: causal_pairs\nverb: {verb}\nseed: 0\nneeds: {{}}\nlaunch: {{nodes: 2}}\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of two nodes, on the second of which we are; ``seen`` are the ranks of its verb."""
    monkeypatch.setattr(launch, "LEADERLESS_S", 0.05)
    monkeypatch.setattr(launch, "POLL_S", 0.01)
    monkeypatch.setenv("NODE_RANK", "1")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(verb="pairs"))
    seen = []
    verb = SimpleNamespace(
        check=lambda recipe: None, run=lambda recipe, folder: seen.append(os.environ["RANK"])
    )
    monkeypatch.setattr(launch, "verb_module", lambda *_: verb)
    return SimpleNamespace(folder=RunFolder(tmp_path), verb=verb, seen=seen)


def test_a_rank_leads_when_nobody_does(run):
    assert execute(run.folder) and run.folder.done
    assert run.seen == ["1", "0"]
    assert (run.folder.path / "log.rank1.txt").is_file() and run.folder.read_record()[
        "devices"
    ] == 2
    assert not execute(run.folder), "done"


def test_a_rank_waits_for_a_leader_that_lives(run, monkeypatch):
    looks = []

    def running(folder):
        looks.append(len(looks))
        if len(looks) == 20:
            folder.mark_done()
        return True

    monkeypatch.setattr(RunFolder, "running", running)
    assert execute(run.folder) and run.seen == ["1"] and len(looks) == 20


def test_a_rank_does_not_repeat_what_failed(run):
    run.verb.run = lambda recipe, folder: folder.mark_failed("ValueError: no")
    assert execute(run.folder) and not run.folder.done


def test_of_two_ranks_one_leads(run, monkeypatch):
    """The other, which finds the lock taken, goes on waiting."""
    refusals = []

    def lead(folder, topology, progress, package):
        assert topology.rank == 0 and topology.nodes == 2
        refusals.append(topology)
        if len(refusals) == 3:
            folder.mark_done()
        raise Busy("taken")

    monkeypatch.setattr(launch, "_lead", lead)
    assert execute(run.folder) and len(refusals) == 3


def test_ranks_of_a_fit_replace_nobody(run, monkeypatch):
    fit = RECIPE.format(verb="fit").replace("nodes: 2", "nodes: 2, strategy: ddp")
    (run.folder.path / "recipe.yaml").write_text(
        fit + "fit: {steps: 1}\nstage: {class: CausalCD}\n"
    )
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert execute(run.folder) and run.seen == ["1"] and not run.folder.done
