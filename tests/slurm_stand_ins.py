"""Slurm's programs as shell scripts that keep jobs as files: what the real ones say at their worst.

A job of the stand-in is ``jobs/<id>``, a line ``STATE|REASON|COMMENT``. What a program does instead
of its work is in ``instead/<program>``, a piece of shell.
"""

import os
from pathlib import Path

_INSTEAD = """#!/bin/sh
state={state}
env > $state/env.$(basename $0)
echo "$@" >> $state/called.$(basename $0)
[ -e $state/instead/$(basename $0) ] && . $state/instead/$(basename $0)
"""
_PROGRAMS = {
    "sbatch": """
    for script; do :; done
    cp "$script" $state/last.sh
    id=$((100 + $(ls $state/jobs | wc -l)))
    comment=$(sed -n "s/^#SBATCH --comment=//p" "$script" | tr -d "'")
    echo "PENDING|Priority|$comment" > $state/jobs/$id
    echo "Submitted batch job $id"
    """,
    "squeue": """
    case " $* " in *" --me "*) echo "squeue: unrecognized option '--me'" >&2; exit 1;; esac
    for file in $state/jobs/*; do [ -e $file ] && echo "$(basename $file)|$(cat $file)"; done; true
    """,
    "scancel": """
    sed -i "s/^[A-Z]*|/CANCELLED|/" $state/jobs/$1
    """,
    "scontrol": "",
    "srun": "",
}


class StandIns:
    """The programs in ``folder``, in front of PATH; no accounting, as on many clusters."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self._folder = folder
        for name in ("bin", "jobs", "instead"):
            (folder / name).mkdir(parents=True)
        for name, body in _PROGRAMS.items():
            program = folder / "bin" / name
            program.write_text(_INSTEAD.format(state=folder) + body)
            program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder / "bin"), prepend=os.pathsep)

    def instead(self, program: str, shell: str) -> None:
        """Have a program run this first; ``exit`` in it ends it."""
        (self._folder / "instead" / program).write_text(shell)

    def put(self, id: int, comment: Path, state: str = "PENDING", reason: str = "Priority") -> None:
        """Put a job into the queue, or change it."""
        (self._folder / "jobs" / str(id)).write_text(f"{state}|{reason}|{comment}\n")

    def jobs(self) -> dict[int, str]:
        """State by job id."""
        files = sorted((self._folder / "jobs").iterdir())
        return {int(file.name): file.read_text().split("|")[0] for file in files}

    def calls(self, program: str) -> list[str]:
        """The arguments of every call."""
        file = self._folder / f"called.{program}"
        return file.read_text().splitlines() if file.exists() else []

    def environment(self, program: str) -> dict[str, str]:
        """That of its last call."""
        lines = (self._folder / f"env.{program}").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    @property
    def script(self) -> list[str]:
        """Lines of the last script that sbatch took."""
        return (self._folder / "last.sh").read_text().splitlines()
