"""`make gpu-check`: what it reads and says, and a rehearsal with a GPU machine's packages."""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_bench import SMALL

from experiments.bench import gpu_check

ROOT = Path(__file__).parent.parent
MACHINE = ROOT / "tests/fixtures/gpu_machine"
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="one"/>
<testcase classname="tests.test_a" name="two"><failure message="x">y</failure></testcase>
<testcase classname="tests.test_b" name="three"><skipped message="no CUDA here"/></testcase>
<testcase classname="tests.test_b" name="four"><skipped message="no CUDA here"/></testcase>
<testcase classname="tests.test_c" name="five"><error message="import">z</error></testcase>
</testsuite></testsuites>"""


def test_what_pytest_counted(tmp_path):
    (tmp_path / "junit.xml").write_text(JUNIT)
    assert gpu_check.counted(tmp_path / "junit.xml") == {
        "passed": 1, "failed": ["tests.test_a::two", "tests.test_c::five"],
        "skipped": {"no CUDA here": 2},
    }  # fmt: skip


def test_the_files_with_tests_for_a_gpu():
    found = {Path(file).name for file in gpu_check.gpu_test_files(ROOT / "tests")}
    assert {"test_bench.py", "test_cuda_graphs.py", "test_attention_backends.py"} <= found
    assert "test_bench_count.py" not in found and len(found) < 12


def test_it_says_what_was_not_measured(tmp_path, capsys):
    rows = [{"name": "a", "median_s": 1}, {"name": "b", "error": "E: x\ny"},
            {"name": "c", "not_run": "no time"}]  # fmt: skip
    file = tmp_path / "card.json"
    file.write_text(json.dumps({"rows": rows}))
    assert gpu_check.conclude(file, {"passed": 1, "failed": [], "skipped": {}}) == 0
    said = capsys.readouterr().out
    assert "1 rows measured, 2 not" in said and "b: E: x\n" in said and "c: no time" in said
    assert gpu_check.conclude(file, {"not_run": "--no-tests"}) == 0
    assert json.loads(file.read_text())["tests"]["passed"] == 1, "of the call that ran them"
    assert gpu_check.conclude(file, {"passed": 0, "failed": ["t"], "skipped": {}}) == 1
    assert gpu_check.conclude(tmp_path / "none.json", {}) == 1


def with_requirements(names: set[str]) -> set[str]:
    """And what our versions of them need, which its own versions may not."""
    known, new = set(), names
    while new:
        known |= new
        needed = set()
        for name in new:
            with suppress(PackageNotFoundError):
                needed |= {*map(Requirement, requires(name) or ())}
        always = (need for need in needed if not need.marker or need.marker.evaluate({"extra": ""}))
        new = {canonicalize_name(need.name) for need in always} - known
    return known


def lacking() -> set[str]:
    """Modules here that the machine has neither in its image nor from the carried wheels."""
    script = (ROOT / "benchmarks/wheels.sh").read_text()
    carried = re.search(r'^wheels="(.*?)"', script, re.M | re.S)[1].split()
    there = {*(MACHINE / "packages.txt").read_text().split()}
    there |= {wheel.partition("==")[0] for wheel in carried}
    there = with_requirements(set(map(canonicalize_name, there))) | {"causal-distillation"}
    found = packages_distributions().items()
    return {module for module, owners in found if not there & set(map(canonicalize_name, owners))}


def test_the_wheels_are_of_the_tested_versions():
    pinned = (ROOT / "constraints.txt").read_text().split()
    script = (ROOT / "benchmarks/wheels.sh").read_text()
    wheels = re.findall(r"[\w-]+==[\w.]+", script)
    assert len(wheels) == 10 and set(wheels) <= set(pinned)


@pytest.mark.slow
def test_a_rehearsal_with_the_packages_of_a_gpu_machine_and_no_network(tmp_path):
    without = lacking()
    assert {"av", "ftfy", "lmdb", "submitit", "deepspeed"} <= without
    assert not without & {"torch", "diffusers", "transformers", "omegaconf"}
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(MACHINE)]),
        "LACKING": ",".join(without),
        "CUDA_VISIBLE_DEVICES": "",
    }
    words = ["--no-tests", "--minutes", "9", "--rows", "vae/decode", "--to", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.bench.gpu_check", *SMALL, *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 rows measured, 0 not" in done.stdout and "this is a rehearsal" in done.stdout
    (row,) = json.loads((tmp_path / "dry-run.json").read_text())["rows"]
    assert row["name"] == "vae/decode" and row["median_s"] > 0


def test_a_machine_without_a_package_is_told_of_the_wheels(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "NEEDED", ("torch", "no_such_package"))
    assert gpu_check.main([]) == 2
    assert "no_such_package cannot be imported" in (said := capsys.readouterr().err)
    assert "benchmarks/wheels.sh" in said
