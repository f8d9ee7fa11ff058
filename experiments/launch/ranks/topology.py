"""Which of a run's processes this one is, and whether it has to start the others itself.

A fit takes ``launch.nodes`` x ``launch.devices`` processes (ranks). They are started by

* nobody: then this process starts its node's ranks (``team.py``). On one node that is all there is
  to do; on several the same command is typed on every node with NODE_RANK and MASTER_ADDR set, or
  started by ``srun`` as one task per node;
* ``torchrun``, or ``srun`` with one task per rank: then every process *is* a rank.

Nothing heavy is imported.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_modules import ALONE

PORT = 29500  # torchrun's default too
HELPED = ("curate", "pairs")
"""Verbs whose shards several processes make, one a device, that are no group (``together.py``)."""
ISOLATED = ("ddp", "deepspeed")
"""Strategies that keep state in their process, which one that executes many runs must not have."""


@dataclass(frozen=True)
class Place:
    """A process among those of a run.

    Args:
        rank: its number over all nodes; 0 holds the folder's lock and writes its record.
        world: how many there are.
        local_rank: its number on its node.
        node: the node's number.
        nodes: how many nodes there are.
        address: of the first node, where the processes meet.
        port: there; 0: any free one, which only a single process may choose.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    node: int = 0
    nodes: int = 1
    address: str = "127.0.0.1"
    port: int = 0

    def environment(self) -> dict[str, str]:
        """The variables in which torch, Lightning and DeepSpeed look for all this."""
        variables = {
            "RANK": self.rank,
            "WORLD_SIZE": self.world,
            "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.world // self.nodes,
            "NODE_RANK": self.node,
            "MASTER_ADDR": self.address,
        }
        if self.port:
            variables["MASTER_PORT"] = self.port
        return {name: str(value) for name, value in variables.items()}

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world} on {socket.gethostname()}"


def wanted(recipe: Mapping[str, Any]) -> tuple[int, int]:
    """Nodes, and devices per node, that a recipe's run keeps busy: as ranks, or with helpers."""
    if recipe["verb"] in HELPED:
        return 1, recipe.get("launch", {}).get("devices", 1)
    return _ranks(recipe)


def _ranks(recipe: Mapping[str, Any]) -> tuple[int, int]:
    """Nodes and processes per node of a run's group; only training has one."""
    launch = recipe.get("launch", {})
    return (launch.get("nodes", 1), launch.get("devices", 1)) if _spread(recipe) else (1, 1)


def _spread(recipe: Mapping[str, Any]) -> bool:
    """Whether a run can take several devices: it trains, and not a stage for one device."""
    if recipe["verb"] != "fit" or recipe.get("stage", {}).get("class") in ALONE:
        return False
    return bool(recipe.get("fit", {}).get("steps"))


def ranks_here(
    recipe: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> list[Place]:
    """The ranks that this process has to start; none if it is a rank itself, see `place_of`.

    Raises:
        ValueError: there are several nodes and nothing says which one this is.
    """
    nodes, devices = _ranks(recipe)
    world, started = nodes * devices, _tasks(environment)
    isolated = _spread(recipe) and recipe.get("launch", {}).get("strategy") in ISOLATED
    if "RANK" in environment or 1 < started == world or (world == 1 and not isolated):
        return []
    node, address, port = 0, "127.0.0.1", free_port()
    if nodes > 1:
        node, address, port = _node(nodes, environment)
    return [
        Place(node * devices + local, world, local, node, nodes, address, port)
        for local in range(devices)
    ]


def place_of(recipe: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Place:
    """The place of a process that starts no others.

    Raises:
        ValueError: a launcher has started another number of processes than the recipe wants.
    """
    nodes, devices = _ranks(recipe)
    tasks, per_node = _tasks(environment), _tasks_per_node(environment)
    if tasks != nodes * devices or per_node - {devices}:
        spread = f", {' or '.join(map(str, sorted(per_node)))} on a node" if per_node else ""
        raise ValueError(
            f"{tasks} processes were started{spread}, and the run takes launch.nodes x"
            f" launch.devices = {nodes} x {devices}: set both to what was started, or start that"
            " (torchrun --nnodes --nproc-per-node, srun --nodes --ntasks-per-node)"
            + ("; a run that does not train takes one process" if nodes * devices == 1 else "")
        )
    if tasks == 1:
        return Place()
    if "RANK" in environment:
        names = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        rank, local_rank, address, port = (environment[name] for name in names)
    else:
        rank, local_rank = environment["SLURM_PROCID"], environment["SLURM_LOCALID"]
        address, port = _meeting_point(environment)
    return Place(int(rank), tasks, int(local_rank), int(rank) // devices, nodes, address, int(port))


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _tasks(environment: Mapping[str, str]) -> int:
    """How many processes a launcher has started as this program's ranks, 1 where there is none."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return int(environment["WORLD_SIZE"])
    return int(environment.get("SLURM_STEP_NUM_TASKS", 1))


def _tasks_per_node(environment: Mapping[str, str]) -> set[int]:
    """How many of them it has started on a node, as far as it says: Slurm's ``8(x2),7`` is 7, 8."""
    if "RANK" in environment:
        return {int(environment[name]) for name in ("LOCAL_WORLD_SIZE",) if name in environment}
    listed = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    return {int(number) for number in re.findall(r"(?:^|,)(\d+)", listed)}


def _node(nodes: int, environment: Mapping[str, str]) -> tuple[int, str, int]:
    """Which node this is, and where the first one is met."""
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks == nodes and _tasks_per_node(environment) <= {1}:
        return int(environment["SLURM_NODEID"]), *_meeting_point(environment)
    if "NODE_RANK" in environment and "MASTER_ADDR" in environment:
        return int(environment["NODE_RANK"]), *_meeting_point(environment)
    raise ValueError(
        f"launch.nodes: {nodes} nodes, and nothing says which one this is: start the same command"
        " on every node with NODE_RANK (0, 1, ...) and MASTER_ADDR (the first node) set, by srun"
        " with one task per node or per device, or by torchrun"
    )


def _meeting_point(environment: Mapping[str, str]) -> tuple[str, int]:
    """The first node's address and a port: as given, else from Slurm's list of nodes and job id."""
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    address = environment.get("MASTER_ADDR") or first_host(nodes)
    spread = int(environment.get("SLURM_JOB_ID", 0)) % 10_000  # two jobs may share a node
    return address, int(environment.get("MASTER_PORT") or PORT + spread)


def first_host(nodes: str) -> str:
    """The first of Slurm's compressed list: ``node[03-05],x1`` -> ``node03``."""
    prefix, number, suffix = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes).groups()
    return prefix + (number or "") + (suffix or "")
