"""SIGKILL at random over a sweep on Slurm: the runner, a process of a job, slurmctld, a slurmd.

What was killed is started again (the runner by the same command, as its user would; daemons as
systemd would), and the sweep must end with the results of an undisturbed one. By hand::

    python tests/slurm/faults.py --kills 20 --seed 1
    python tests/slurm/faults.py --kills 20 --seed 1 --sweep deepspeed

The first sweep is made of verbs that only count; the second fits, samples and scores the tiny
world, each fit in two ranks of DeepSpeed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from cluster import NODES, Cluster, missing

from sweeps.executors.local import LocalPool
from sweeps.plan.graph import Sweep, load_sweep
from sweeps.run.display import Lines
from sweeps.run.runner import Runner

HERE = Path(__file__).parent
VICTIMS = ("runner", "job", "slurmctld", *NODES)
STEP_S = 0.5
DEEPSPEED = HERE / "deepspeed.yaml"
PATH = os.pathsep.join([str(HERE.parent.parent), str(HERE.parent / "fixtures")])


@dataclass(frozen=True)
class Subject:
    """A sweep that is disturbed.

    Args:
        command: its runner, but for where the runs live.
        results: what a folder of its runs has come to, by name.
        undisturbed: the same sweep on this machine, into a folder.
        between_s: least and most seconds from kill to kill.
        patience_s: seconds without an end after which there will be none; and more for each kill.
    """

    command: tuple[str, ...]
    results: Callable[[Path], dict[str, str]]
    undisturbed: Callable[[Path], None]
    between_s: tuple[float, float]
    patience_s: tuple[float, float]


class Disturbed:
    """One sweep in ``runs``, with ``kills`` at times and places that ``dice`` decide."""

    def __init__(
        self, subject: Subject, cluster: Cluster, runs: Path, kills: int, dice: random.Random
    ) -> None:
        self._subject = subject
        self._cluster = cluster
        self._runs = runs
        self._left = kills
        self._dice = dice
        self.killed: Counter[str] = Counter()
        self.runners = 0

    def run(self) -> None:
        """Returns when a runner has found everything done. Raises TimeoutError if none does."""
        all_in_all, each = self._subject.patience_s
        end = time.monotonic() + all_in_all + each * self._left
        runner = self._start()
        while runner.poll() != 0:
            if time.monotonic() > end:
                runner.kill()
                raise TimeoutError(f"not done after {dict(self.killed)}: {self._runs}")
            if runner.poll() is not None:
                runner = self._start()
            self._cluster.resume()
            try:
                runner.wait(self._dice.uniform(*self._subject.between_s))
            except subprocess.TimeoutExpired:
                if self._left:
                    self._kill(runner)

    def _start(self) -> subprocess.Popen[bytes]:
        self.runners += 1
        words = ["--cluster", "slurm", "--retry", "--runs", str(self._runs)]
        with open(self._runs.parent / f"{self._runs.name}.log", "ab") as said:
            return subprocess.Popen(
                [sys.executable, *self._subject.command, *words],
                env={**os.environ, **self._cluster.environment, "PYTHONPATH": PATH},
                stdout=said,
                stderr=said,
            )

    def _kill(self, runner: subprocess.Popen[bytes]) -> None:
        victim = self._dice.choice(VICTIMS)
        if victim == "runner":
            runner.kill()
            runner.wait()
        elif victim == "job":
            processes = self._job_processes()
            if not processes:
                return
            self._dice.choice(processes).kill()
        else:
            self._cluster.kill(victim)
            time.sleep(self._dice.uniform(0.1, 1.5))
            self._cluster.start(victim)
        self._left -= 1
        self.killed[victim] += 1

    def _job_processes(self) -> list[psutil.Process]:
        """The processes that execute this sweep's runs: of jobs, and their ranks."""
        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            ours = any(word.startswith(str(self._runs)) for word in words)
            at_work = {"submitit.core._submit", "experiments.launch.ranks"} & set(words)
            if ours and at_work and "srun" not in words[0]:
                found.append(process)
        return found


def counted(runs: Path) -> dict[str, str]:
    """What every run of the sweep that counts has come to."""
    return {path.parent.name: path.read_text() for path in sorted(runs.glob("*/result.txt"))}


def trained(runs: Path) -> dict[str, str]:
    """Hashes of what runs hand on: students, shards, scores."""
    found = {}
    for pattern in ("student/*.safetensors", "shards/*.tar", "scores.jsonl"):
        for path in sorted(runs.glob(f"*/{pattern}")):
            found[str(path.relative_to(runs))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def count_here(runs: Path) -> None:
    """The sweep that counts, on this machine, where nothing happens to it."""
    from program import sweep

    _run_here(sweep(step_s=STEP_S), runs, "fixture_verbs")


def train_here(runs: Path) -> None:
    """The sweep that trains, likewise."""
    one_node = {"base.launch.nodes": 1, "base.launch.devices": 2}
    _run_here(load_sweep(str(DEEPSPEED), "tiny", settings=one_node), runs, "experiments.verbs")


def _run_here(sweep: Sweep, runs: Path, package: str) -> None:
    Runner(sweep, runs, LocalPool(2, package), Lines()).run()


SUBJECTS = {
    "counting": Subject(
        (str(HERE / "program.py"), str(STEP_S)),
        counted,
        count_here,
        between_s=(0.3, 2.5),
        patience_s=(150, 10),
    ),
    "deepspeed": Subject(
        (str(HERE / "fits.py"), str(DEEPSPEED), "tiny"),
        trained,
        train_here,
        between_s=(2, 25),
        patience_s=(900, 60),
    ),
}


def disturb(subject: Subject, folder: Path, kills: int, dice: random.Random) -> Counter[str]:
    """Sweep after sweep until all kills are spent. Raises AssertionError if one ends otherwise."""
    expected = folder / "expected"
    expected.mkdir()
    subject.undisturbed(expected)
    total: Counter[str] = Counter()
    while total.total() < kills:
        begin, runs = time.monotonic(), folder / f"sweep{total.total()}"
        runs.mkdir()
        with Cluster() as cluster:
            sweep = Disturbed(subject, cluster, runs, kills - total.total(), dice)
            sweep.run()
        total += sweep.killed
        found, wanted = subject.results(runs), subject.results(expected)
        differing = sorted(name for name in found | wanted if found.get(name) != wanted.get(name))
        assert not differing, f"other results in {runs}: {differing}"
        print(
            f"{dict(sweep.killed)}: {sweep.runners} runners, {time.monotonic() - begin:.0f} s,"
            f" the same {len(found)} results",
            flush=True,
        )
    return total


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Kill at random, and see that it does not matter.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sweep", choices=SUBJECTS, default="counting")
    chosen = parser.parse_args()
    if problem := missing():
        sys.exit(problem)
    os.environ["PYTHONPATH"] = PATH
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    total = disturb(SUBJECTS[chosen.sweep], folder, chosen.kills, random.Random(chosen.seed))
    print(f"{total.total()} kills: {dict(total)}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
