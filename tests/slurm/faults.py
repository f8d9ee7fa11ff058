"""SIGKILL at random over a sweep on Slurm: the runner, a job's process, slurmctld, a slurmd.

What was killed is started again (the runner by the same command, as its user would; daemons as
systemd would), and the sweep must end with the results of an undisturbed one. By hand::

    python tests/slurm/faults.py --kills 20 --seed 1
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from cluster import NODES, Cluster, missing

TESTS = Path(__file__).parent.parent
VICTIMS = ("runner", "job", "slurmctld", *NODES)
STEP_S = 0.5
UNTIL_DEAD_S = 150.0


class Disturbed:
    """One sweep in ``runs``, with ``kills`` at times and places that ``dice`` decide."""

    def __init__(self, cluster: Cluster, runs: Path, kills: int, dice: random.Random) -> None:
        self._cluster = cluster
        self._runs = runs
        self._left = kills
        self._dice = dice
        self.killed: Counter[str] = Counter()
        self.runners = 0

    def run(self) -> None:
        """Returns when a runner has found everything done. Raises TimeoutError if none does."""
        end = time.monotonic() + UNTIL_DEAD_S + 10 * self._left
        runner = self._start()
        while runner.poll() != 0:
            if time.monotonic() > end:
                runner.kill()
                raise TimeoutError(f"not done after {dict(self.killed)}: {self._runs}")
            if runner.poll() is not None:
                runner = self._start()
            self._cluster.resume()
            try:
                runner.wait(self._dice.uniform(0.3, 2.5))
            except subprocess.TimeoutExpired:
                if self._left:
                    self._kill(runner)

    def _start(self) -> subprocess.Popen[bytes]:
        self.runners += 1
        words = [str(STEP_S), "--cluster", "slurm", "--retry", "--runs", str(self._runs)]
        path = os.pathsep.join([str(TESTS.parent), str(TESTS / "fixtures")])
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "program.py"), *words],
            env={**os.environ, **self._cluster.environment, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
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
        """The processes that execute this sweep's runs."""
        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            ours = any(word.startswith(str(self._runs)) for word in words)
            if ours and "submitit.core._submit" in words and "srun" not in words[0]:
                found.append(process)
        return found


def results(runs: Path) -> dict[str, str]:
    """What every run of a sweep has come to, by name."""
    return {path.parent.name: path.read_text() for path in sorted(runs.glob("*/result.txt"))}


def undisturbed(runs: Path) -> dict[str, str]:
    """The results of the same sweep on this machine, where nothing happens to it."""
    from program import sweep

    from sweeps.display import Lines
    from sweeps.executors.local import LocalPool
    from sweeps.runner import Runner

    Runner(sweep(step_s=STEP_S), runs, LocalPool(2, "fixture_verbs"), Lines()).run()
    return results(runs)


def main() -> int:
    """Sweep after sweep until all kills are spent; 1 if one came to another end."""
    parser = argparse.ArgumentParser(description="Kill at random, and see that it does not matter.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if problem := missing():
        sys.exit(problem)
    dice, total = random.Random(chosen.seed), Counter()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    (folder / "expected").mkdir()
    expected = undisturbed(folder / "expected")
    while total.total() < chosen.kills:
        begin, runs = time.monotonic(), folder / f"sweep{total.total()}"
        runs.mkdir()
        with Cluster() as cluster:
            sweep = Disturbed(cluster, runs, chosen.kills - total.total(), dice)
            sweep.run()
        total += sweep.killed
        same = results(runs) == expected
        print(
            f"{dict(sweep.killed)}: {sweep.runners} runners, {time.monotonic() - begin:.0f} s,"
            f" {'the same results' if same else f'OTHER RESULTS in {runs}'}",
            flush=True,
        )
        if not same:
            return 1
    print(f"{total.total()} kills: {dict(total)}")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS / "fixtures")])
    sys.exit(main())
