"""Resources of a Slurm job: ``launch.slurm`` of the scale, and what follows from the recipe.

A job is one task per node, which starts the ranks of its node (``launch/ranks/launcher.py``) or its
shard workers (``launch/shard_workers.py``). Ranks end together; workers go on without a lost node.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from jsonargparse.typing import NonNegativeInt, PositiveInt, restricted_number_type

from experiments.launch.ranks.topology import SHARDED, wanted
from experiments.runs.config import nearest
from experiments.runs.signature import bind
from sweeps.executors.devices import wants_gpu

SECTION = "launch.slurm"
_DAYS = 14  # a run that needs longer resumes; more are hours or seconds taken for minutes
_TIB = 2**10  # in GiB
Minutes = restricted_number_type("Minutes", int, [(">=", 1), ("<=", _DAYS * 24 * 60)])
Gibibytes = restricted_number_type("Gibibytes", float, [(">=", 0), ("<=", 64 * _TIB)])
Count = restricted_number_type("Count", int, (">=", -1))

_ELSEWHERE = {
    "time": "timeout_min",
    "mem": "mem_gb",
    "signal": "signal_s",
    "gpus": "gpus_per_node",
    "nodes": "launch.nodes",
    "ntasks": "launch.nodes",
    "ntasks_per_node": "launch.nodes",
}
"""Options of sbatch by another name, and the setting that they are made of."""
_OURS = (
    "array", "comment", "dependency", "error", "job_name", "kill_on_invalid_dep", "no_requeue",
    "open_mode", "output", "parsable", "quiet", "requeue", "test_only", "wait", "wrap",
)  # fmt: skip
"""Options of sbatch by which jobs are found again, wait for each other and resume."""


@dataclass(frozen=True)
class Resources:
    """The settings under ``launch.slurm.default`` and ``launch.slurm.<recipe>``.

    Args:
        partition, account, qos, constraint: as for sbatch; "": SBATCH_PARTITION, ..., else the
            cluster's default.
        cpus_per_task: cores on each node.
        mem_gb: GiB of memory on each node; 0: the cluster's default.
        timeout_min: time limit; a run that needs longer saves, is requeued and resumes.
        signal_s: seconds between the warning (USR2) and the end at the time limit. Saving must fit
            into it, and into the partition's GraceTime where jobs are preempted.
        restarts: how often a run may reach its time limit.
        gpus_per_node: -1: as many as the run has ranks there, none for a run meant for CPUs.
        setup: lines of shell before the run, such as ``module load cuda``.
        more: further options of sbatch by their long names; true for one without a value.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    cpus_per_task: PositiveInt = 1
    mem_gb: Gibibytes = 0.0
    timeout_min: Minutes = 60
    signal_s: PositiveInt = 120
    restarts: NonNegativeInt = 50
    gpus_per_node: Count = -1
    setup: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.signal_s >= 60 * self.timeout_min:
            raise ValueError(
                f"{SECTION}.signal_s: {self.signal_s} s before the time limit is before the job"
                f" begins, for timeout_min is {self.timeout_min} minutes"
            )
        for name, value in self.more.items():
            _check_further(name, value)

    @property
    def left_to_user(self) -> tuple[str, ...]:
        """Variables of sbatch's that may decide, since the scale leaves their option open."""
        options = ("partition", "account", "qos", "constraint")
        return tuple(f"SBATCH_{name.upper()}" for name in options if not getattr(self, name))

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Resources:
        """Validated settings. Raises ValueError naming the key and valid values."""
        known = [each.name for each in fields(cls)]
        for key, value in settings.items():
            if key not in known:
                raise ValueError(
                    f"{SECTION}.{key}: there is no such setting{nearest(key, known)}"
                    f" (there are: {', '.join(known)}; other options of sbatch go under more)"
                )
            if value is None:
                raise ValueError(f"{SECTION}.{key} is empty: give it a value, or leave it out")
        bound = bind(cls, settings, section=SECTION)
        # Plain numbers: a job cannot unpickle those of a restricted type.
        return cls(**{key: type(getattr(cls(), key))(value) for key, value in bound.items()})

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
            "mem": f"{math.ceil(self.mem_gb * 1024)}M" if self.mem_gb else "",
            "setup": self.setup,
        }
        return {key: value for key, value in named.items() if value} | {
            "nodes": nodes,
            "ntasks_per_node": 1,
            "cpus_per_task": self.cpus_per_task,
            "time": self.timeout_min,
            "signal_delay_s": self.signal_s,
            # srun ignores sbatch's cpus-per-task
            "srun_args": [f"--cpus-per-task={self.cpus_per_task}", *_when_a_task_is_lost(recipe)],
        }


def _when_a_task_is_lost(recipe: Mapping[str, Any]) -> list[str]:
    """Options of srun: one lost rank ends the others; shard workers go on without it."""
    if recipe["verb"] in SHARDED:
        return ["--kill-on-bad-exit=0", "--no-kill", "--wait=0"]
    return ["--kill-on-bad-exit=1"]


def _check_further(name: str, value: Any) -> None:
    """An option under ``more``. Raises ValueError if it is ours, or no option with a value."""
    where, option = f"{SECTION}.more.{name}", name.lstrip("-").replace("-", "_")
    own = {each.name: each.name for each in fields(Resources)} | _ELSEWHERE
    if option in own:
        raise ValueError(f"{where}: set {own[option]} instead")
    if any(ours.startswith(option) for ours in (*own, *_OURS)):  # sbatch takes a beginning too
        raise ValueError(f"{where}: this program sets it itself; remove it")
    if value is not True and (isinstance(value, bool) or not isinstance(value, (str, int, float))):
        raise ValueError(
            f"{where}: {value!r} is no value of an option: write text in quotes, true for an option"
            " that has no value, or leave it out"
        )
