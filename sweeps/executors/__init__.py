"""Where runs are executed: processes of this machine, or jobs of a Slurm cluster.

`Executor` is the only interface the runner uses. ``executor(cluster)`` makes one by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from experiments.runs.config import nearest

CLUSTERS = ("local", "slurm")


@dataclass(frozen=True)
class Job:
    """A task for a run: ``check`` its recipe, or execute (``run``) its folder.

    ``slurm`` holds the resources of a Slurm job (``launch.slurm``), ``after`` the names of
    submitted runs that must be done before.
    """

    do: str
    run: str
    recipe: dict[str, Any]
    folder: Path | None = None
    slurm: dict[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()


class Unreachable(RuntimeError):
    """The cluster does not answer; holds what was asked, and what came back if anything did."""


@dataclass(frozen=True)
class Event:
    """What happened to a job.

    ====================  ======================================================================
    checked               ``text`` says what is wrong with the recipe, "" if nothing
    queued                it is in a queue (``text`` names it)
    noted                 nothing new; ``text`` is what the user should know
    started, progress     it is executed
    done, found           it is finished, in the second case by another process
    failed                the verb failed
    died                  its process ended without an exception
    lost                  the same, not caused by the run: preemption, node failure
    busy                  another process executes the run
    withdrawn             never started, because a run it waits for did not finish
    interrupted           the process was asked to stop, and has saved
    cancelled             the job was cancelled
    ====================  ======================================================================
    """

    kind: str
    job: Job
    text: str = ""
    done: int = 0
    total: int = 0


class Executor(Protocol):
    """Executes jobs and reports events."""

    size: int
    """How many runs can be in work at once, for forecasts."""
    detached: bool
    """Jobs live in a queue of the cluster's: they may wait there for each other, and they go on
    without this process."""

    @property
    def jobs(self) -> list[Job]:
        """The submitted jobs."""
        ...

    def problem(self, job: Job) -> str:
        """Why this job can never be executed here, or ""."""
        ...

    def choose(self, jobs: Sequence[Job]) -> list[Job]:
        """Those that can be submitted now; in order for each resource."""
        ...

    def submit(self, job: Job) -> None:
        """Submit a job that `choose` returned."""
        ...

    def poll(self, timeout: float) -> list[Event]:
        """Wait up to ``timeout`` seconds for events.

        Raises Unreachable when the cluster has not answered for a long time.
        """
        ...

    def interrupt(self) -> list[str]:
        """Ask active runs to save and stop, or say why they continue."""
        ...

    def close(self) -> None:
        """End all processes; a detached executor's jobs stay."""
        ...


def executor(
    cluster: str,
    workers: int | None = None,
    package: str = "experiments.verbs",
    gpus: Sequence[str] | None = None,
) -> Executor:
    """The executor of a cluster by name.

    Args:
        cluster: one of CLUSTERS.
        workers: local: processes without a GPU (default: one per core); Slurm: maximal number of
            jobs in the queue.
        package: where the verbs are.
        gpus: local: ids of the GPUs to use (default: all there are).

    Raises ValueError for an unknown cluster, naming those that exist, and for an unavailable one.
    """
    if cluster not in CLUSTERS:
        raise ValueError(
            f"unknown cluster {cluster!r}{nearest(cluster, CLUSTERS)}"
            f" (there are: {', '.join(CLUSTERS)})"
        )
    if cluster == "slurm":
        from sweeps.executors.slurm import SlurmQueue

        return SlurmQueue(package, workers)
    from sweeps.executors.devices import cores, visible_gpus
    from sweeps.executors.local import LocalPool

    found = visible_gpus() if gpus is None else list(gpus)
    return LocalPool(workers or cores(), package, found)
