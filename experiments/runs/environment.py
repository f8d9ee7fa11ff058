"""Which environment variables decide something, for this program and for those that it calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping

_OF_SLURM = ("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SRUN_")
_WHERE_SLURM_IS = ("SLURM_CONF", "SLURM_CLUSTERS")


def slurms(environment: Mapping[str, str], also: Collection[str] = ()) -> dict[str, str]:
    """The environment for Slurm's programs.

    They take defaults, filters and whole resources from variables: from a user's profile, or from
    the job or interactive shell in which this process runs. Only those that say where Slurm is stay
    (and ``also``).
    """
    stay = {*_WHERE_SLURM_IS, *also}
    return {k: v for k, v in environment.items() if k in stay or not k.startswith(_OF_SLURM)}
