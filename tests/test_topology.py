"""The rank topology, from the environment variables that launchers set."""

import pytest

from experiments.launch.ranks.topology import (
    SHARDED,
    first_host,
    ranks_here,
    topology_of,
    wanted,
)


def fit(nodes=1, devices=1, **launch) -> dict:
    launch = {"nodes": nodes, "devices": devices, **launch}
    return {"verb": "fit", "fit": {"steps": 2}, "stage": {"class": "CausalCD"}, "launch": launch}


def test_one_device_is_this_process():
    assert ranks_here(fit(), {}) == []
    assert topology_of(fit(), {}).environment()["WORLD_SIZE"] == "1"


@pytest.mark.parametrize(
    "other",
    [
        {"verb": "score"},
        {"fit": {"steps": 0}},
        {"stage": {"class": "WorldProbe"}},
    ],
)
def test_what_does_not_train_takes_one_process(other):
    assert ranks_here(fit(2, 8) | other, {}) == []
    assert topology_of(fit(2, 8) | other, {}).world == 1


@pytest.mark.parametrize("verb", ["fit", "sample", "score"])
@pytest.mark.parametrize("value", ["nope", 1.5, None, 0, -1, True, ""])
@pytest.mark.parametrize("key", ["nodes", "devices"])
def test_what_is_no_number_of_machines_is_refused_by_its_key(verb, key, value):
    recipe = fit(**{key: value}) | {"verb": verb}
    for ask in (wanted, lambda each: ranks_here(each, {})):
        with pytest.raises(ValueError, match=f"launch.{key}: {value!r} must be a whole number"):
            ask(recipe)


def test_a_strategy_with_state_gets_a_process_of_its_own():
    (only,) = ranks_here(fit(strategy="deepspeed"), {})
    assert only.world == 1 and only.port
    assert ranks_here(fit(strategy="deepspeed"), only.environment()) == [], "that one is it"


def test_several_nodes_by_hand():
    environment = {"NODE_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "1234"}
    topologies = ranks_here(fit(2, 3), environment)
    assert [(topology.rank, topology.local_rank) for topology in topologies] == [
        (3, 0),
        (4, 1),
        (5, 2),
    ]
    assert {(p.world, p.node, p.nodes, p.address, p.port) for p in topologies} == {
        (6, 1, 2, "first", 1234)
    }
    for topology in topologies:
        assert topology_of(fit(2, 3), topology.environment()) == topology
    with pytest.raises(ValueError, match="NODE_RANK"):
        ranks_here(fit(2, 3), {})


SLURM = {"SLURM_STEP_NODELIST": "gpu-[07-08]", "SLURM_JOB_ID": "123", "SLURM_NODEID": "1"}


def test_slurm_with_a_task_per_node_or_per_device():
    per_node = SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    per_node["SLURM_STEP_TASKS_PER_NODE"] = "1(x2)"
    topologies = ranks_here(fit(2, 3), per_node)
    assert [topology.rank for topology in topologies] == [3, 4, 5]
    assert {(topology.address, topology.port) for topology in topologies} == {("gpu-07", 29623)}
    per_device = SLURM | {"SLURM_STEP_NUM_TASKS": "6", "SLURM_PROCID": "5", "SLURM_LOCALID": "2"}
    per_device["SLURM_STEP_TASKS_PER_NODE"] = "3(x2)"
    assert ranks_here(fit(2, 3), per_device) == []
    assert topology_of(fit(2, 3), per_device) == topologies[2]


def test_torchrun_is_believed_and_must_agree_with_the_recipe():
    environment = {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "a", "MASTER_PORT": "9",
    }  # fmt: skip
    assert ranks_here(fit(2, 2), environment) == []
    topology = topology_of(fit(2, 2), environment)
    assert (topology.rank, topology.node, topology.local_rank, topology.port) == (3, 1, 1, 9)
    with pytest.raises(ValueError, match="4 processes were started.*launch.nodes"):
        topology_of(fit(1, 2), environment)


@pytest.mark.parametrize(
    ("started", "wanted", "said"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "1"}, (1, 8), "8 .*, 1 on a node"),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, (8, 1), "8 .*, 8 on a node"),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "1(x8)"}, (1, 8), "1 on a"),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "3(x2),2"}, (2, 4), "2 or 3"),
    ],
)
def test_processes_that_are_spread_otherwise_are_refused(started, wanted, said):
    """As many as the recipe wants, but not so many on a node: ranks would be there twice."""
    assert ranks_here(fit(*wanted), SLURM | started) == []
    with pytest.raises(ValueError, match=f"{said}.*launch.devices.*--ntasks-per-node"):
        topology_of(fit(*wanted), SLURM | started)


def test_as_many_tasks_as_nodes_on_one_node_are_no_nodes():
    started = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    with pytest.raises(ValueError, match="one task per node"):
        ranks_here(fit(2, 8), SLURM | started)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n[3-5,9]", "n3"), ("gpu-[03-05],x[1]", "gpu-03"), ("a1,b2", "a1"),
     ("r[1-2]-ib", "r1-ib"), ("", "")],
)  # fmt: skip
def test_first_host(nodes, first):
    assert first_host(nodes) == first


def pairs(nodes=1, devices=1) -> dict:
    return {"verb": "pairs", "launch": {"nodes": nodes, "devices": devices}}


@pytest.mark.parametrize("verb", SHARDED)
def test_what_makes_shards_takes_all_devices_of_all_nodes(verb):
    assert wanted(pairs(2, 8) | {"verb": verb}) == (2, 8)
    assert wanted({"verb": "score", "launch": {"nodes": 2, "devices": 8}}) == (1, 1)


def test_a_worker_of_a_node_or_of_a_device():
    """One per node sees a local world of 1 and starts the others; one per device does not."""
    node = topology_of(pairs(2, 4), {"NODE_RANK": "1"})
    assert (node.rank, node.world) == (1, 2) and node.environment()["LOCAL_WORLD_SIZE"] == "1"
    assert ranks_here(pairs(2, 4), {"NODE_RANK": "1"}) == []
    assert topology_of(pairs(1, 4), {"NODE_RANK": "3"}).rank == 0, "one node is node 0"
    task = SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    task |= {"SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    assert topology_of(pairs(2, 4), task).environment()["LOCAL_WORLD_SIZE"] == "1"
    task |= {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
    task |= {"SLURM_PROCID": "6", "SLURM_LOCALID": "2"}
    device = topology_of(pairs(2, 4), task)
    assert (device.rank, device.node, device.local_rank) == (6, 1, 2)
    assert device.environment()["LOCAL_WORLD_SIZE"] == "4"


@pytest.mark.parametrize(
    "environment, said",
    [
        ({}, "launch.nodes: 2 nodes, but not which one this is.*NODE_RANK"),
        ({"NODE_RANK": "2"}, r"NODE_RANK \(0 to 1\)"),
        ({"RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}, "3 processes were started"),
    ],
)
def test_workers_that_are_started_otherwise_are_refused(environment, said):
    with pytest.raises(ValueError, match=said):
        topology_of(pairs(2, 4), environment)
