"""Which environment variables decide something, for this program and for those that it calls.

A recipe and a scale say what a run does. The shell, notebook, job or profile from which it is
started must not: `settle` mends what libraries cannot bear, `workers` and `slurms` leave out what
belongs to somebody else.
"""

from __future__ import annotations

import codecs
import getpass
import locale
import os
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from zlib import crc32

_OF_RANKS = {
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "WORLD_SIZE",
    "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
}  # fmt: skip
_OF_LAUNCHERS = ("TORCHELASTIC_", "OMPI_", "PMI_", "PMIX_", "SLURM_")
_OF_SLURM = ("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SRUN_")
_WHERE_SLURM_IS = ("SLURM_CONF", "SLURM_CLUSTERS")
_LONGEST = 60  # bytes of a folder's name that leave enough for sockets in it
_JOB = "SLURM_JOB_ID"  # the lease of a run names it
_OF_PYTHON = {"PYTHONOPTIMIZE", "PYTHONWARNINGS"}  # read when the interpreter starts
_NOT_OURS = {"PYTHONIOENCODING", "GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"}


def settle() -> None:
    """Make this process and its children independent of its surroundings; the first thing to do.

    Text is UTF-8 wherever nothing else is said, and no output fails for want of a letter. What the
    interpreter reads at its start takes another start of it.
    """
    tried = os.environ.get("PYTHONUTF8") == "1"
    os.environ["PYTHONUTF8"] = "1"
    if _drop(_OF_PYTHON) or not (tried or _speaks_utf8()):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    _drop(_NOT_OURS)
    # A notebook's backend of matplotlib exists in its own environment only.
    os.environ |= {"MPLBACKEND": "svg", "TOKENIZERS_PARALLELISM": "false"}
    _have_a_home()
    _have_room_for_sockets()


def workers(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that executes runs alone, whatever started this one.

    Under torchrun, or in a shell that ``srun`` or ``salloc`` opened, it would be a rank.
    """
    rest = {k: v for k, v in environment.items() if k not in _OF_RANKS}
    return _without(rest, _OF_LAUNCHERS, {*_WHERE_SLURM_IS, _JOB})


def slurms(environment: Mapping[str, str], also: Collection[str] = ()) -> dict[str, str]:
    """The environment for Slurm's programs.

    They take defaults, filters and whole resources from variables: from a user's profile, or from
    the job or interactive shell in which this process runs. Only those that say where Slurm is stay
    (and ``also``).
    """
    return _without(environment, _OF_SLURM, {*_WHERE_SLURM_IS, *also})


def _without(
    environment: Mapping[str, str], prefixes: tuple[str, ...], stay: Collection[str]
) -> dict[str, str]:
    return {k: v for k, v in environment.items() if k in stay or not k.startswith(prefixes)}


def _drop(names: Collection[str]) -> bool:
    """Remove variables; returns whether there were any."""
    found = set(names) & set(os.environ)
    for name in found:
        del os.environ[name]
    return bool(found)


def _speaks_utf8() -> bool:
    """Whether file names and files without a stated encoding are UTF-8."""
    names = (sys.getfilesystemencoding(), locale.getencoding())
    return bool(sys.flags.utf8_mode) or all(codecs.lookup(n).name == "utf-8" for n in names)


def _have_a_home() -> None:
    """A name and a home for a user without an entry in the password file, as in containers."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = os.environ["USER"] = str(os.getuid())
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = os.path.join(tempfile.gettempdir(), f"home-{name}")
        os.makedirs(os.environ["HOME"], mode=0o700, exist_ok=True)


def _have_room_for_sockets() -> None:
    """Another name, a link, for a folder of temporary files with a long one.

    The loaders' processes meet at sockets in it, and a socket's name has at most a hundred letters.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) <= _LONGEST:
        return
    link = Path("/tmp", f"{os.getuid()}-{crc32(os.fsencode(folder)):08x}")
    try:
        if not link.is_symlink():
            link.symlink_to(folder)
        same = os.readlink(link) == folder
    except OSError:
        return  # loaders without processes (launch.workers=0) work all the same
    if same:
        os.environ["TMPDIR"] = tempfile.tempdir = str(link)
