"""Rank topology: which rank of a run this process is, or which ranks it has to launch.

A fit takes ``launch.nodes`` x ``launch.devices`` ranks. They are started by

* this process, for its own node (``launcher.py``). On several nodes the same command is started on
  every node, with NODE_RANK and MASTER_ADDR set or by ``srun`` with one task per node;
* ``torchrun``, or ``srun`` with one task per rank: then every process *is* a rank.

A verb that makes shards takes as many workers, started in the same ways (`shard_workers_of`); they
meet in the run folder alone.

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
SHARDED = ("curate", "pairs", "sample")
"""Verbs whose shards are made by one worker per device, without a process group
(``shard_workers.py``)."""
ISOLATED = ("ddp", "deepspeed")
"""Strategies with process-wide state, which a process that executes many runs must not hold."""


@dataclass(frozen=True)
class Topology:
    """One rank among those of a run, in torchrun's terms.

    Args:
        rank: over all nodes; rank 0 holds the folder's lock and writes its record.
        world: number of ranks.
        local_rank: rank within the node.
        node: node rank.
        nodes: number of nodes.
        address: rendezvous address, of the first node.
        port: rendezvous port; 0: any free one, for a single process only.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    node: int = 0
    nodes: int = 1
    address: str = "127.0.0.1"
    port: int = 0

    def environment(self) -> dict[str, str]:
        """The environment variables that torch, Lightning and DeepSpeed read."""
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
    """Nodes, and devices per node, that a recipe's run uses, by ranks or shard workers."""
    if recipe["verb"] in SHARDED:
        return _spread_over(recipe)
    return _ranks(recipe)


def _spread_over(recipe: Mapping[str, Any]) -> tuple[int, int]:
    """``launch.nodes`` and ``launch.devices``; ValueError for one that is no number of machines."""
    launch = recipe.get("launch", {})
    nodes, devices = (launch.get(key, 1) for key in ("nodes", "devices"))
    for key, value in (("nodes", nodes), ("devices", devices)):
        if type(value) is not int or value < 1:
            raise ValueError(f"launch.{key}: {value!r} must be a whole number at least 1")
    return nodes, devices


def _ranks(recipe: Mapping[str, Any]) -> tuple[int, int]:
    """Nodes and ranks per node of a run's process group; only training has one."""
    spread = _spread_over(recipe)
    return spread if _spread(recipe) else (1, 1)


def _spread(recipe: Mapping[str, Any]) -> bool:
    """Whether a run can use several devices: it trains, and its stage is not in ``ALONE``."""
    if recipe["verb"] != "fit" or recipe.get("stage", {}).get("class") in ALONE:
        return False
    return bool(recipe.get("fit", {}).get("steps"))


def ranks_here(
    recipe: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> list[Topology]:
    """The ranks that this process has to launch; none if it is a rank itself, see `topology_of`.

    Raises:
        ValueError: there are several nodes and the environment does not say which one this is.
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
        Topology(node * devices + local, world, local, node, nodes, address, port)
        for local in range(devices)
    ]


def topology_of(recipe: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Topology:
    """The topology of a process that is a rank itself, or works on shards.

    Raises:
        ValueError: a launcher started another number of processes than the recipe requires.
    """
    if recipe["verb"] in SHARDED:
        return _of_shard_worker(recipe, environment)
    nodes, devices = _ranks(recipe)
    tasks, per_node = _tasks(environment), _tasks_per_node(environment)
    if tasks != nodes * devices or per_node - {devices}:
        raise _otherwise_started(nodes, devices, environment)
    return Topology() if tasks == 1 else _started(nodes, devices, environment)


def _of_shard_worker(recipe: Mapping[str, Any], environment: Mapping[str, str]) -> Topology:
    """Of one process per device, or of one per node (its ``world`` is then the number of nodes).

    Raises:
        ValueError: another number of processes was started, or it is not known on which node.
    """
    nodes, devices = wanted(recipe)
    tasks, per_node = _tasks(environment), _tasks_per_node(environment)
    if tasks == 1:
        node = 0 if nodes == 1 else int(environment.get("NODE_RANK", -1))
        if not 0 <= node < nodes:
            raise ValueError(
                f"launch.nodes: {nodes} nodes, but not which one this is: start the same command on"
                f" every node with NODE_RANK (0 to {nodes - 1}) set, by srun with one task per node"
                " or per device, or by torchrun"
            )
        return Topology(node, nodes, 0, node, nodes)
    if tasks == nodes * devices and not per_node - {devices}:
        return _started(nodes, devices, environment)
    if tasks == nodes and not per_node - {1}:
        return _started(nodes, 1, environment)
    raise _otherwise_started(nodes, devices, environment)


def _otherwise_started(nodes: int, devices: int, environment: Mapping[str, str]) -> ValueError:
    """What to say where other processes were started than the recipe requires."""
    per_node = _tasks_per_node(environment)
    spread = f", {' or '.join(map(str, sorted(per_node)))} on a node" if per_node else ""
    return ValueError(
        f"{_tasks(environment)} processes were started{spread}, but the run takes launch.nodes x"
        f" launch.devices = {nodes} x {devices}: set both to what was started, or start as many"
        " (torchrun --nnodes --nproc-per-node, srun --nodes --ntasks-per-node)"
        + ("; a run that does not train takes one process" if nodes * devices == 1 else "")
    )


def _started(nodes: int, devices: int, environment: Mapping[str, str]) -> Topology:
    """The topology of this process among the ``nodes`` x ``devices`` that a launcher started."""
    if "RANK" in environment:
        names = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        rank, local_rank, address, port = (environment[name] for name in names)
    else:
        rank, local_rank = environment["SLURM_PROCID"], environment["SLURM_LOCALID"]
        address, port = _rendezvous(environment)
    world, node = nodes * devices, int(rank) // devices
    return Topology(int(rank), world, int(local_rank), node, nodes, address, int(port))


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _tasks(environment: Mapping[str, str]) -> int:
    """How many ranks torchrun or srun started, 1 without either."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return int(environment["WORLD_SIZE"])
    return int(environment.get("SLURM_STEP_NUM_TASKS", 1))


def _tasks_per_node(environment: Mapping[str, str]) -> set[int]:
    """The ranks per node, as far as the launcher says: Slurm's ``8(x2),7`` is {7, 8}."""
    if "RANK" in environment:
        return {int(environment[name]) for name in ("LOCAL_WORLD_SIZE",) if name in environment}
    listed = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    return {int(number) for number in re.findall(r"(?:^|,)(\d+)", listed)}


def _node(nodes: int, environment: Mapping[str, str]) -> tuple[int, str, int]:
    """Node rank, rendezvous address and port."""
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks == nodes and _tasks_per_node(environment) <= {1}:
        return int(environment["SLURM_NODEID"]), *_rendezvous(environment)
    if "NODE_RANK" in environment and "MASTER_ADDR" in environment:
        return int(environment["NODE_RANK"]), *_rendezvous(environment)
    raise ValueError(
        f"launch.nodes: {nodes} nodes, but not which one this is: start the same command"
        " on every node with NODE_RANK (0, 1, ...) and MASTER_ADDR (the first node) set, by srun"
        " with one task per node or per device, or by torchrun"
    )


def _rendezvous(environment: Mapping[str, str]) -> tuple[str, int]:
    """Rendezvous address and port: as set, else from Slurm's node list and job id."""
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    address = environment.get("MASTER_ADDR") or first_host(nodes)
    spread = int(environment.get("SLURM_JOB_ID", 0)) % 10_000  # two jobs may share a node
    return address, int(environment.get("MASTER_PORT") or PORT + spread)


def first_host(nodes: str) -> str:
    """The first host of Slurm's compressed node list: ``node[03-05],x1`` -> ``node03``."""
    prefix, number, suffix = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes).groups()
    return prefix + (number or "") + (suffix or "")
