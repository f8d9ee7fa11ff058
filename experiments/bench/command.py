"""The command line of the bench: which rows, in what time, each in a process of its own."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.runs.folder import home_path
from experiments.runs.provenance import revision

if TYPE_CHECKING:
    from experiments.bench.isolated import Answer
    from experiments.bench.report import Report
    from experiments.bench.row import Task
    from experiments.bench.worker import Bench
    from experiments.runs.recipe import Library

    Ask = Callable[[Mapping[str, Any], float], Answer]

WHAT = ("rollout", "train", "pairs", "vae", "all")
START_S = 120.0  # to import everything and to start a device
LEAST_S = 60.0  # of a row's share: some compile
SHARE = 4  # of the time that is left, what one row may take
WORTH_S = 10.0  # with less left no row is begun
WITHOUT_LIMIT_S = 3600.0
log = logging.getLogger(__name__)


def declare(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``python -m experiments bench``."""
    parser.add_argument("part", choices=WHAT, help="what to measure")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="change a number of the scale"
    )
    parser.add_argument("--scale", default="tiny", help="one of experiments/scale (tiny)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--rows", help="of these names only, such as rollout/2,train/stage2_causal_cd"
    )
    parser.add_argument(
        "--minutes", type=float, help="stop then; the most valuable rows come first (no limit)"
    )
    parser.add_argument(
        "--row-seconds",
        type=float,
        help="kill a row that takes longer (with --minutes a quarter of what is left, at least a"
        " minute; without, an hour)",
    )
    parser.add_argument("--warmup", type=int, default=1, help="times before the clock runs (1)")
    parser.add_argument("--repeats", type=int, default=5, help="times with the clock (5)")
    parser.add_argument(
        "--few-steps", type=int, nargs="+", default=[1, 2, 4], help="of the rollouts (1 2 4)"
    )
    parser.add_argument(
        "--out",
        type=home_path,
        help="where the JSON goes (bench-SCALE-PART.json); one of the same device, scale and code"
        " is continued",
    )
    parser.add_argument("--again", action="store_true", help="measure what it has already anew")
    parser.add_argument(
        "--one-process",
        action="store_true",
        help="all rows in this process: starts faster, but nothing ends one that hangs",
    )


def run(chosen: argparse.Namespace, library: Library | None = None) -> None:
    """Measure; print each row and rewrite the JSON as soon as it is measured.

    Raises:
        ValueError: a wrong setting, a missing device, or nothing could be measured.
    """
    end = _end(chosen)  # importing counts

    from experiments.bench import catalogue
    from experiments.bench.report import Report, require_same
    from experiments.bench.worker import Arguments, Bench

    arguments = Arguments(
        chosen.scale,
        tuple(chosen.settings),
        chosen.device,
        chosen.warmup,
        chosen.repeats,
        tuple(chosen.few_steps),
    )
    bench = Bench(arguments, library)
    wanted = chosen.rows.split(",") if chosen.rows else []
    tasks = bench.tasks()
    if chosen.part != "all":
        tasks = catalogue.chosen(tasks, [chosen.part])
    if wanted:
        tasks = catalogue.chosen(tasks, wanted)
    file = chosen.out or Path(f"bench-{chosen.scale}-{chosen.part}.json")
    ask = _here(bench) if chosen.one_process else _apart(arguments, file.with_suffix(".log"))
    about = _asked(bench, arguments)
    if file.exists() and not chosen.again:
        require_same(file, about)  # before the device's peak is measured
    about |= _device(ask)
    names = [task.name for task in tasks]
    report = Report(file, about, names, chosen.again)
    _measure(tasks, report, ask, end, chosen.row_seconds)
    _conclude(report, names)


def _end(chosen: argparse.Namespace) -> float:
    """When no time is left, by the monotonic clock."""
    for name in ("minutes", "row_seconds"):
        if (value := getattr(chosen, name)) is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')}: {value} must be above 0")
    if chosen.one_process and (chosen.row_seconds is not None or chosen.minutes is not None):
        raise ValueError(
            "--one-process: a row in this process cannot be ended; leave out --minutes and"
            " --row-seconds"
        )
    return time.monotonic() + 60 * chosen.minutes if chosen.minutes else float("inf")


def _apart(arguments: Any, logged: Path) -> Ask:
    """Each order to a process of its own."""
    from experiments.bench import isolated

    words = asdict(arguments)
    return lambda order, seconds: isolated.ask({"arguments": words, **order}, seconds, logged)


def _here(bench: Bench) -> Ask:
    """Each order in this process."""
    from experiments.bench.clock import forget_peak
    from experiments.bench.device import Peak
    from experiments.bench.isolated import Answer
    from experiments.bench.worker import measured

    def ask(order: Mapping[str, Any], seconds: float) -> Answer:
        if "task" not in order:
            return Answer([bench.about_device()])
        task = next(task for task in bench.tasks() if task.name == order["task"])
        lines = list(measured(task, Peak(**order["peak"])))
        forget_peak(bench.subject.device)
        rows = [line["row"] for line in lines if "row" in line]
        return Answer(rows, lines[-1].get("error", "") if lines else "")

    return ask


def _device(ask: Ask) -> dict[str, Any]:
    """The device, versions and peak. Raises ValueError if the device does not answer."""
    answer = ask({}, START_S)
    if answer.error:
        raise ValueError(f"the device cannot be described: {answer.error}")
    device, peak = answer.rows[0], answer.rows[0]["peak"]
    log.info(
        "%s, peak: %.3g TFLOP/s (%s), %.3g GB/s",
        device["device"]["name"], peak["matmul_flops"] / 1e12, peak["dtype"],
        peak["copy_bytes"] / 1e9,
    )  # fmt: skip
    return device


def _asked(bench: Bench, arguments: Any) -> dict[str, Any]:
    """Scale, code and protocol."""
    subject = bench.subject
    return {
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "revision": revision(),
        "scale": arguments.scale,
        "settings": bench.settings,
        "clip_shape": list(subject.shape),
        "blocks": list(subject.blocks),
        "precision": subject.tree["precision"],
        "attention": bench.kernel,
        "weights": "random: speed does not depend on their values",
        "protocol": {
            "warmup": arguments.warmup,
            "repeats": arguments.repeats,
            "clock": "perf_counter between synchronisations",
            "batch": "1 clip, unless a row says otherwise",
        },
    }


def _measure(tasks: list[Task], report: Report, ask: Ask, end: float, most: float | None) -> None:
    """The rows that are not there, as long as time is left."""
    wanted = [task for task in tasks if not report.has(task.name)]
    for number, task in enumerate(wanted, 1):
        log.info("row %d of %d: %s", number, len(wanted), task.name)
        left = end - time.monotonic()
        if left < WORTH_S:
            report.skip(task.name, f"no time was left (--minutes): {max(left, 0):.0f} s")
            continue
        share = WITHOUT_LIMIT_S if left == float("inf") else max(LEAST_S, left / SHARE)
        answer = ask({"task": task.name, "peak": report.about["peak"]}, min(most or share, left))
        report.add(task.name, answer.rows, answer.error)


def _conclude(report: Report, names: list[str]) -> None:
    """Say what was not measured, and the predicted costs."""
    from experiments.bench.report import line, prediction

    if not any(map(report.has, names)):
        raise ValueError(f"nothing could be measured; {report.file} says why")
    for lacking in ("error", "not_run"):
        for row in report.rows(lacking):
            log.error("%s", line(row))
    log.info(
        "%s",
        prediction(report.rows(), report.about["clip_shape"], report.about["device"]["name"]),
    )
    log.info("written: %s", report.file)
