"""The command line of the bench, and its JSON."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.atomic import write_text
from experiments.runs.recipe import Library, Resolver, parse_settings

if TYPE_CHECKING:
    import torch

    from experiments.bench.clock import Protocol
    from experiments.bench.device import Peak
    from experiments.bench.random_models import Subject
    from experiments.bench.report import Task

WHAT = ("rollout", "train", "pairs", "vae", "all")
log = logging.getLogger(__name__)


def declare(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``python -m experiments bench``."""
    parser.add_argument("part", choices=WHAT, help="what to measure")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="change a number of the scale"
    )
    parser.add_argument("--scale", default="tiny", help="one of experiments/scale (tiny)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--warmup", type=int, default=1, help="times before the clock runs (1)")
    parser.add_argument("--repeats", type=int, default=5, help="times with the clock (5)")
    parser.add_argument(
        "--few-steps", type=int, nargs="+", default=[1, 2, 4], help="of the rollouts (1 2 4)"
    )
    parser.add_argument("--out", type=Path, help="where the JSON goes (bench-SCALE-PART.json)")


def run(chosen: argparse.Namespace, library: Library | None = None) -> None:
    """Measure; print each row and rewrite the JSON as soon as it is measured.

    Raises:
        ValueError: a wrong setting, a missing device, or nothing could be measured.
    """
    from experiments.bench import device as devices
    from experiments.bench.clock import Protocol
    from experiments.bench.random_models import Subject
    from experiments.bench.sizes import scale_tree
    from lightning_modules.networks.wan import attention

    for chatty in ("lightning.pytorch", "diffusers"):  # logs of devices, tips and casts
        logging.getLogger(chatty).setLevel(logging.ERROR)
    if chosen.warmup < 0 or min(chosen.repeats, *chosen.few_steps) < 1:
        raise ValueError("--warmup must not be negative, --repeats and --few-steps at least 1")
    library, settings = library or Library(), parse_settings(chosen.settings)
    subject = Subject(scale_tree(chosen.scale, settings, library), _device(chosen.device))
    kernel = subject.tree["launch"].get("attention", "auto")
    attention.use(kernel, subject.device)
    protocol = Protocol(chosen.warmup, chosen.repeats)
    peak = devices.measure_peak(subject.device, subject.dtype)
    log.info(
        "peak: %.3g TFLOP/s (%s), %.3g GB/s",
        peak.matmul_flops / 1e12, peak.dtype, peak.copy_bytes / 1e9,
    )  # fmt: skip
    about = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "scale": chosen.scale,
        "settings": settings,
        "clip_shape": list(subject.shape),
        "blocks": list(subject.blocks),
        "precision": subject.tree["precision"],
        "attention": kernel,
        "weights": "random: speed does not depend on their values",
        "device": devices.describe(subject.device),
        "versions": devices.versions(),
        "protocol": {
            "warmup": chosen.warmup,
            "repeats": chosen.repeats,
            "clock": "perf_counter between synchronisations",
            "batch": "1 clip, unless a row says otherwise",
        },
        "peak": peak.as_dict(),
    }
    report = Report(chosen.out or Path(f"bench-{chosen.scale}-{chosen.part}.json"), about)
    for task in _tasks(chosen, subject, peak, protocol, Resolver(chosen.scale, library), settings):
        report.measure(task, subject.device, peak)
    report.end()


class Report:
    """The JSON report, complete after every row.

    Args:
        file: its path.
        about: scale, device and protocol of the measurement.
    """

    def __init__(self, file: Path, about: dict[str, Any]) -> None:
        self._file, self._about = file, about
        self._rows: list[dict[str, Any]] = []

    def measure(self, task: Task, device: torch.device, peak: Peak) -> None:
        """Add a task's rows; a failure becomes a row with its error. Frees the task's memory."""
        from experiments.bench.clock import forget_peak

        try:
            for row in task.rows():
                self._add(row.as_dict(peak))
        except Exception as error:  # compiler, memory, ...: other rows go on
            log.error("%s", task.name, exc_info=True)
            self._add({"name": task.name, "error": f"{type(error).__name__}: {error}"})
        forget_peak(device)

    def end(self) -> None:
        """Print the predicted costs.

        Raises:
            ValueError: every row is an error.
        """
        failed = [row["name"] for row in self._rows if "error" in row]
        if len(failed) == len(self._rows):
            raise ValueError(f"nothing could be measured; {self._file} says why")
        if failed:
            log.error("not measured: %s", "; ".join(failed))
        log.info("%s", _prediction(self._predicted(), self._about["device"]["name"]))
        log.info("written: %s", self._file)

    def _add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        whole = self._about | {"rows": self._rows, "stage2": self._predicted()}
        write_text(self._file, json.dumps(whole, indent=1, allow_nan=False) + "\n")
        log.info("%s", _line(row))

    def _predicted(self) -> dict[str, Any]:
        from experiments.bench import predict

        measured = [row for row in self._rows if "error" not in row]
        return predict.stage2(measured, self._about["clip_shape"])


def _tasks(
    chosen: argparse.Namespace,
    subject: Subject,
    peak: Peak,
    protocol: Protocol,
    resolver: Resolver,
    settings: dict[str, Any],
) -> Iterator[Task]:
    """The requested parts, each imported lazily."""
    from experiments.bench import pairs, rollout, train, vae

    wanted = WHAT[:-1] if chosen.part == "all" else (chosen.part,)
    if "rollout" in wanted:
        yield from rollout.bench(subject, peak, protocol, chosen.few_steps)
    if "train" in wanted:
        yield from train.bench(subject, peak, protocol, resolver, settings)
    if "pairs" in wanted:
        yield from pairs.bench(subject, peak, protocol)
    if "vae" in wanted:
        yield from vae.bench(subject, peak, protocol)


def _device(name: str) -> Any:
    import torch

    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ValueError("--device cuda: torch sees no GPU here; use cpu, or auto")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['name']:<48} {row['error'].splitlines()[0]}"
    share, mfu = 100 * row["share_of_roofline"], 100 * row["mfu"]
    return (
        f"{row['name']:<48} {row['median_s']:10.4f} s  {share:5.1f}% of the roofline"
        f"  MFU {mfu:5.1f}%  {row['peak_memory_bytes'] / 2**30:7.2f} GiB"
    )


def _prediction(stage2: dict[str, Any], device: str) -> str:
    """The costs of Stage 2 as a small table."""
    lines = [f"Stage 2 at the paper's counts: hours of one {device} (paper: A800), GiB (paper)"]
    for init, one in stage2["initialisations"].items():
        hours = one["device_hours"]
        shown = "not measured" if hours is None else f"{hours:,.1f}"
        lines.append(
            f"  {init:<18} {shown:>14} ({_printed(one['paper_a800_hours'])})"
            f"  {one['storage_gib']:8,.0f} ({_printed(one['paper_storage_gib'])})"
        )
    return "\n".join(lines)


def _printed(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"
