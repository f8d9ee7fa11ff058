"""``make gpu-check``: the tests that need a GPU, then the rows of the bench, within minutes.

    python -m experiments.bench.gpu_check [--minutes 9] [--to benchmarks] [key=value ...]

On a machine with a GPU it writes ``benchmarks/<card>.json`` at the scale of Wan2.1; without one it
rehearses the same at the tiny scale into ``benchmarks/dry-run.json``. It needs no network, and says
at the end what it did not measure. The same command goes on with the rows that are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from datamodules.atomic import write_text
from experiments.runs.environment import settle, workers

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("torch", "lightning", "diffusers", "transformers", "omegaconf", "jsonargparse", "psutil")
TESTS_SHARE = 0.25  # of the time
GPU, CPU = ("wan1.3b", "cuda"), ("tiny", "cpu")
SHORT = ("stages.pairs.intervals=4",)  # of 48: `predict.py` scales them
PROTOCOL = {
    "wan1.3b": ("--warmup", "1", "--repeats", "3"),
    "tiny": ("--warmup", "1", "--repeats", "1", "--few-steps", "2"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; returns 0 if no test failed and a row was measured."""
    chosen = _parser().parse_args(arguments)
    end = time.monotonic() + 60 * chosen.minutes
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        print(
            f"error: {', '.join(missing)} cannot be imported; install the project, or carry wheels:"
            " benchmarks/wheels.sh",
            file=sys.stderr,
        )
        return 2
    import torch

    gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if gpu else "dry-run"
    scale, device = GPU if gpu else CPU
    chosen.to.mkdir(parents=True, exist_ok=True)
    file = chosen.to / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name).strip('-')}.json"
    said = "" if gpu else "; torch sees no GPU, so this is a rehearsal"
    print(f"{name}, torch {torch.__version__}, scale {scale} -> {file}{said}", flush=True)
    tests: dict[str, Any] = {"not_run": "--no-tests"}
    if not chosen.no_tests:
        tests = run_tests(chosen.to / "gpu-tests.log", TESTS_SHARE * 60 * chosen.minutes)
        print(f"tests marked gpu: {tests}", flush=True)
    minutes = max(0.01, (end - time.monotonic()) / 60)
    # Settings first: an option that takes several values would swallow them.
    words = [*SHORT, *chosen.settings, "--scale", scale, "--device", device]
    words += ["--minutes", f"{minutes:.2f}", *PROTOCOL[scale], "--out", str(file)]
    words += ["--rows", chosen.rows] if chosen.rows else []
    words += ["--again"] if chosen.again else []
    bench = [sys.executable, "-m", "experiments", "bench", "all", *words]
    status = subprocess.run(bench, cwd=ROOT).returncode
    return conclude(file, tests) or status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.gpu_check",
        description="Tests marked gpu and rows of the bench, within minutes, without a network.",
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="change the scale")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it (9)")
    parser.add_argument(
        "--to", type=lambda word: Path(word).resolve(), default=ROOT / "benchmarks",
        help="the folder of results (benchmarks)",
    )  # fmt: skip
    parser.add_argument("--rows", help="of these names only, as for bench")
    parser.add_argument("--again", action="store_true", help="measure what is there already anew")
    parser.add_argument("--no-tests", action="store_true", help="rows alone")
    return parser


def gpu_test_files(tests: Path) -> list[str]:
    """Files with a test that is marked gpu: importing all of them takes longer than their tests."""
    files = sorted(tests.rglob("test_*.py"))
    return [str(file) for file in files if "mark.gpu" in file.read_text(encoding="utf-8")]


def run_tests(log: Path, seconds: float) -> dict[str, Any]:
    """How many of the tests marked gpu passed, failed and were skipped, and why."""
    xml = log.with_suffix(".xml")
    xml.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "--tb=short"]
    command += ["-p", "no:cacheprovider", f"--junitxml={xml}", *gpu_test_files(ROOT / "tests")]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, env=workers(os.environ),
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status is None:
        return {"not_run": f"killed after {seconds:.0f} s; {log} says how far they came"}
    if not xml.exists():
        return {"not_run": f"pytest ended with status {status}; {log} says why"}
    found = counted(xml)
    xml.unlink()
    return found


def counted(xml: Path) -> dict[str, Any]:
    """Of pytest's JUnit file: numbers, names of failed tests and reasons of skipped ones."""
    passed, failed, skipped = 0, [], {}
    for case in ElementTree.parse(xml).getroot().iter("testcase"):
        kinds = {child.tag: child for child in case}
        if "failure" in kinds or "error" in kinds:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif "skipped" in kinds:
            why = kinds["skipped"].get("message", "")
            skipped[why] = skipped.get(why, 0) + 1
        else:
            passed += 1
    return {"passed": passed, "failed": failed, "skipped": skipped}


def conclude(file: Path, tests: dict[str, Any]) -> int:
    """Put the tests into the JSON; say what was found and what was not measured."""
    if not file.exists():
        print("no row was measured", file=sys.stderr)
        return 1
    report = json.loads(file.read_text(encoding="utf-8"))
    if "not_run" not in tests or "tests" not in report:
        report["tests"] = tests
        write_text(file, json.dumps(report, indent=1, allow_nan=False) + "\n")
    lacking = {
        row["name"]: row.get("error") or row["not_run"]
        for row in report["rows"]
        if "error" in row or "not_run" in row
    }
    print(f"{len(report['rows']) - len(lacking)} rows measured, {len(lacking)} not:")
    for name, why in lacking.items():
        print(f"  {name}: {why.splitlines()[0]}")
    return 1 if tests.get("failed") else 0


if __name__ == "__main__":
    settle()
    sys.exit(main())
