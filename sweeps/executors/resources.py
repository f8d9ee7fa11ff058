"""Resources of a Slurm job: ``launch.slurm`` of the scale, and what follows from the recipe.

A job is one task per node, which starts the ranks of its node (``launch/ranks/launcher.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from experiments.launch.ranks.topology import wanted
from experiments.runs.config import nearest
from sweeps.executors.devices import wants_gpu


@dataclass(frozen=True)
class Resources:
    """The settings under ``launch.slurm.default`` and ``launch.slurm.<recipe>``.

    Args:
        partition, account, qos, constraint: as for sbatch; "": the cluster's default.
        cpus_per_task: cores on each node.
        mem_gb: memory on each node; 0: the cluster's default.
        timeout_min: time limit; a run that needs longer saves, is requeued and resumes.
        signal_s: seconds between the warning (USR2) and the end at the time limit. Saving must fit
            into it, and into the partition's GraceTime where jobs are preempted.
        restarts: how often a run may reach its time limit.
        gpus_per_node: -1: as many as the run has ranks there, none for a run meant for CPUs.
        setup: lines of shell before the run, such as ``module load cuda``.
        more: further options of sbatch by their long names.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    cpus_per_task: int = 1
    mem_gb: float = 0.0
    timeout_min: int = 60
    signal_s: int = 120
    restarts: int = 50
    gpus_per_node: int = -1
    setup: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Resources:
        """Validated settings. Raises ValueError naming the key and valid values."""
        known = {each.name: each for each in fields(cls)}
        for key, value in settings.items():
            if key not in known:
                raise ValueError(
                    f"launch.slurm.{key}: there is no such setting{nearest(key, known)}"
                    f" (there are: {', '.join(known)}; other options of sbatch go under more)"
                )
            kind = type(getattr(cls(), key))
            fits = isinstance(value, (int, float) if kind is float else kind)
            if not fits or isinstance(value, bool):
                raise ValueError(f"launch.slurm.{key}: {value!r} is not of type {kind.__name__}")
        return cls(**settings)

    def parameters(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of submitit's ``SlurmExecutor.update_parameters`` for a run of this recipe."""
        nodes, devices = wanted(recipe)
        gpus = self.gpus_per_node
        if gpus < 0:
            gpus = devices if wants_gpu(recipe) else 0
        named = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "gpus_per_node": gpus,
            "mem": self.mem_gb,
            "setup": self.setup,
        }
        return {key: value for key, value in named.items() if value} | {
            "nodes": nodes,
            "ntasks_per_node": 1,
            "cpus_per_task": self.cpus_per_task,
            "time": self.timeout_min,
            "signal_delay_s": self.signal_s,
            # srun ignores sbatch's cpus-per-task; if a node is lost, its task ends the others
            "srun_args": [f"--cpus-per-task={self.cpus_per_task}", "--kill-on-bad-exit=1"],
        }
