"""The command line: ``python -m sweeps {plan,run,status,students,table} SWEEP``, ``... theory``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from datamodules.signals import interrupt_on_stop
from experiments.runs.environment import settle
from experiments.runs.errors import INTERRUPTED, answered
from experiments.runs.folder import runs_dir
from experiments.runs.recipe import Library
from sweeps.executors import CLUSTERS, executor
from sweeps.plan.graph import Sweep, load_sweep, sweeps

WHAT = {
    "plan": "what would run, what is done already, what it will cost; starts nothing",
    "run": "run what is not done; the same command continues after an interruption",
    "status": "where every run stands; why one failed, and how to resume it",
    "students": "which run trained the student of each cell, for generate, live and export",
    "table": "the table of what has been run so far",
}

THEORY = "the report on the closed-form worlds: the table of the sweep theory, for three seeds"


@answered
def main(arguments: Sequence[str] | None = None, library: Library | None = None) -> int:
    """Returns the exit status: 0 success, 1 a run failed or stdout was closed (``| head``), 2 usage
    error, 130 interrupted.
    """
    chosen = _parser().parse_args(arguments)
    runs = runs_dir(chosen.runs)
    if chosen.what == "run":
        return _run(_planned(chosen, runs, library), runs, chosen)
    _print(chosen, runs, library)
    return 0


def _planned(chosen: argparse.Namespace, runs: Path, library: Library | None) -> Sweep:
    return load_sweep(chosen.sweep, chosen.scale, chosen.seeds, library, runs=runs)


def _print(chosen: argparse.Namespace, runs: Path, library: Library | None) -> None:
    if chosen.what in ("table", "theory"):
        from sweeps.report import command

        command.main(chosen.sweep, chosen.scale, chosen.seeds, runs)
        return
    if chosen.what == "status" and chosen.why:
        from sweeps.run.why import explain, find

        again = f"python -m sweeps run {_choice(chosen, runs)}"
        print(explain(find(runs, chosen.why), again))
        return
    from sweeps.run import status

    sweep = _planned(chosen, runs, library)
    if chosen.what == "plan":
        status.print_plan(sweep, runs)
    elif chosen.what == "students":
        from sweeps.run.students import print_students

        print_students(sweep, chosen.cell, runs, chosen.paths)
    elif chosen.watch:
        status.watch(sweep, runs)
    else:
        status.print_status(sweep, runs, _choice(chosen, runs))


def _choice(chosen: argparse.Namespace, runs: Path) -> str:
    """The command-line arguments that select this sweep."""
    seeds = ",".join(map(str, chosen.seeds))
    words = [chosen.sweep, "--scale", chosen.scale, "--seeds", seeds, "--runs", str(runs)]
    return shlex.join(words)


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sweeps", description="Run many runs.")
    verbs = top.add_subparsers(dest="what", required=True)
    theory = verbs.add_parser("theory", help=THEORY, description=f"{THEORY.capitalize()}.")
    theory.set_defaults(sweep="theory", scale="")
    _add_runs(theory, [0, 1, 2])
    for name, what in WHAT.items():
        sub = verbs.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
        known = ", ".join(sweeps())
        sub.add_argument("sweep", nargs="?", default="ablation", help=f"{known}, or a YAML file")
        sub.add_argument("--scale", default="tiny", help="one of experiments/scale (tiny)")
        _add_runs(sub, [0])
        if name == "run":
            sub.add_argument("--cluster", default="local", help=f"{', '.join(CLUSTERS)} (local)")
            sub.add_argument(
                "--workers",
                type=_count,
                help="runs at once on CPUs (one a core), or in Slurm's queue",
            )
            sub.add_argument("--gpus", type=_words, help="local: GPUs to use, such as 0,1 (all)")
            sub.add_argument("--retry", action="store_true", help="try failed runs again")
            sub.add_argument("--measure", action="store_true", help="report time, memory, disk")
            sub.add_argument("--package", default="experiments.verbs", help=argparse.SUPPRESS)
        elif name == "students":
            sub.add_argument("--cell", action="append", default=[], metavar="AXIS=VALUE",
                             help="of these cells alone; may be given several times")  # fmt: skip
            sub.add_argument("--paths", action="store_true", help="folders alone, of done ones")
        elif name == "status":
            sub.add_argument("--watch", action="store_true", help="until all is done, or Ctrl-C")
            sub.add_argument("--why", metavar="RUN", help="why this run stands where it stands")
    return top


def _add_runs(parser: argparse.ArgumentParser, seeds: list[int]) -> None:
    default = ",".join(map(str, seeds))
    parser.add_argument(
        "--seeds", type=_seeds, default=seeds, help=f"such as 0 or 0,1,2 ({default})"
    )
    parser.add_argument("--runs", help="where runs live (RUNS_DIR, else ./runs)")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number such as 1, 2, 8")
    return int(text)


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of distinct numbers like 0,1,2")
    return seeds


def _run(sweep: Sweep, runs: Path, chosen: argparse.Namespace) -> int:
    from sweeps.run.checks import Refused
    from sweeps.run.display import display
    from sweeps.run.runner import Interrupted, Outcome, Runner

    pool = executor(chosen.cluster, chosen.workers, chosen.package, chosen.gpus)
    interrupt_on_stop()
    runs.mkdir(parents=True, exist_ok=True)

    def execute() -> Outcome:
        with display() as shown:
            return Runner(sweep, runs, pool, shown, chosen.retry).run()

    try:
        if chosen.measure:
            from sweeps.run.resource_monitor import Measurement

            with Measurement(runs) as measurement:
                outcome = execute()
            if outcome.found_done:
                print(f"note: {len(outcome.found_done)} runs were done already and cost nothing")
            print(measurement.report())
        else:
            outcome = execute()
    except Refused as refused:
        count = len(refused.problems)
        print(f"error: nothing was started, {count} runs are refused:\n", file=sys.stderr)
        print(refused, file=sys.stderr)
        return 2
    except Interrupted as stop:
        print("\n".join(["", *stop.messages, "To go on, give the same command again."]))
        return INTERRUPTED
    executed, before = len(outcome.executed), len(outcome.found_done)
    print(f"{sweep.name}: {executed} runs executed, {before} done before")
    if not outcome.failed:
        return 0
    print(f"{len(outcome.failed)} failed, {len(outcome.blocked)} wait for them:", file=sys.stderr)
    for name in outcome.failed:
        print(f"  python -m sweeps status {_choice(chosen, runs)} --why {name}", file=sys.stderr)
    print("When the cause is mended, try again with --retry (make RETRY=1).", file=sys.stderr)
    return 1


if __name__ == "__main__":
    settle()
    sys.exit(main())
