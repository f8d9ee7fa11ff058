"""A real Slurm on one machine: munged, slurmctld and two slurmd, in a folder of their own.

By hand: ``python tests/slurm/cluster.py COMMAND ...`` runs a command (such as ``bash``) beside a
fresh cluster and takes it down afterwards. Needs root (slurmctld starts jobs as their users, munged
wants its own) and Debian's packages; ``tests/slurm/install.sh`` installs them where it can.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
NODES = ("node1", "node2")
STARTED_WITHIN_S = 30.0

# cred_expire and sched_interval decide how long a requeued job waits: seconds instead of minutes.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={port_of_nodes}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire=5,socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
MaxJobCount={most_jobs}
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=2,sched_interval=2,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
KillWait=5
SlurmdTimeout=10
SlurmctldTimeout=10
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_of_nodes} CPUs=4 RealMemory=64000
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_of_other} CPUs=4 RealMemory=64000
PartitionName=low Nodes=node1,node2 Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=node1,node2 PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Why there can be no cluster here, or ""."""
    lacking = [name for name in PROGRAMS if _program(name) is None]
    if lacking:
        return f"no {', '.join(lacking)}: tests/slurm/install.sh (Debian: slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "a Slurm of one's own needs root"


class Cluster:
    """Started on entering, gone on leaving, whatever happened in between.

    ``most_jobs``: in the queue, those that ended in the last minutes included (MaxJobCount; limits
    of a user or QOS need a database).
    """

    def __init__(self, most_jobs: int = 10_000) -> None:
        self._most_jobs = most_jobs
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o755)  # munged refuses a socket below what others cannot enter
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to talk to this cluster; ranks meet on loopback."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1"}

    def __enter__(self) -> Cluster:
        ports = _free_ports(3)
        names = dict(zip(("port", "port_of_nodes", "port_of_other"), ports, strict=True))
        names |= {"host": socket.gethostname(), "most_jobs": self._most_jobs}
        (self.folder / "slurm.conf").write_text(CONFIG.format(folder=self.folder, **names))
        (self.folder / "state").mkdir()
        try:
            self._start_munge()
            for name in ("slurmctld", *NODES):
                self.start(name)
            self._wait_for_nodes()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.running("slurmctld"):
            self.call("scancel", "--me")  # first, for a job outlives the daemons
            end = time.monotonic() + 10
            while self.call("squeue", "-h", "-t", "all", "-o", "%T").count("ING"):
                if time.monotonic() > end:
                    break
                time.sleep(0.2)
        for name in list(self._daemons):
            self.kill(name)
        _kill_all_that_mention(str(self.folder))
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, name: str) -> None:
        """Start a daemon ("slurmctld" or a node) in the foreground of a session of its own."""
        config = str(self.folder / "slurm.conf")
        command = ["slurmctld", "-D", "-i", "-f", config]
        if name in NODES:
            command = ["slurmd", "-D", "-N", name, "-f", config]
        self._spawn(name, command)

    def kill(self, name: str) -> None:
        """SIGKILL for a daemon; the jobs of a node go on."""
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def allow(self, most_jobs: int) -> None:
        """Another limit, which slurmctld reads at its start."""
        file = self.folder / "slurm.conf"
        limit = f"MaxJobCount={self._most_jobs}\n"
        file.write_text(file.read_text().replace(limit, f"MaxJobCount={most_jobs}\n"))
        self.kill("slurmctld")
        self.start("slurmctld")

    def resume(self) -> None:
        """Take nodes back that Slurm has drained after a fault, as an operator would."""
        self.call("scontrol", "update", f"nodename={','.join(NODES)}", "state=resume")

    def running(self, name: str) -> bool:
        """Whether a daemon lives."""
        return name in self._daemons and self._daemons[name].poll() is None

    def call(self, *command: str) -> str:
        """What one of Slurm's programs says."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    def _spawn(self, name: str, command: list[str]) -> None:
        program = _program(command[0])
        assert program is not None
        with open(self.folder / f"{name}.out", "ab") as output:
            self._daemons[name] = subprocess.Popen(
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **self.environment},
            )

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        folder.mkdir(mode=0o755)
        key = folder / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        places = {"key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder / name}" for option, name in places.items()]
        self._spawn("munged", ["munged", "-F", f"--socket={folder / 'socket'}", *options])
        self._wait(lambda: (folder / "socket").exists(), "munged")

    def _wait_for_nodes(self) -> None:
        def idle() -> bool:
            return self.call("sinfo", "-h", "-N", "-p", "low", "-o", "%t").split() == ["idle"] * 2

        self._wait(idle, "the nodes")

    def _wait(self, ready, what: str) -> None:
        end = time.monotonic() + STARTED_WITHIN_S
        while not ready():
            if time.monotonic() > end:
                logs = [f"{path.name}:\n{path.read_text()[-1500:]}" for path in self._logs()]
                raise TimeoutError("\n".join([f"{what} did not start", *logs]))
            time.sleep(0.1)

    def _logs(self) -> list[Path]:
        return sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin")


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _kill_all_that_mention(folder: str) -> None:
    """Daemons' children (slurmstepd, jobs): they have the cluster's configuration in their
    environment or on their command line."""
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.environ().get("SLURM_CONF", "")]
            if process.pid != os.getpid() and any(folder in word for word in words):
                process.send_signal(signal.SIGKILL)
        except psutil.Error:
            continue


if __name__ == "__main__":
    if problem := missing():
        sys.exit(problem)
    with Cluster() as cluster:
        environment = {**os.environ, **cluster.environment}
        status = subprocess.run(sys.argv[1:] or ["bash"], env=environment).returncode
    sys.exit(status)
