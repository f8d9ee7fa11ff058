"""Who may import whom: the arrows of the architecture, read from the imports themselves."""

import ast
import subprocess
from pathlib import Path

import pytest
from import_graph import PACKAGES, circles, files, imports, rooms, upward

ROOT = Path(__file__).parent.parent
# The floors of each house, lowest first; what shares a floor does not know each other.
FLOORS = {
    "lightning_modules": [["ranges"], ["diffusion", "networks"], ["training"]],  # then: stages
    "datamodules": [
        ["signals"],
        ["atomic", "cameras", "json_files", "order", "values"],
        ["curation"],
        ["shards"],
        ["loader"],
        ["video"],
    ],
    "experiments": [
        ["runs"],
        ["checkpoints", "metrics"],
        ["launch", "generation"],
        ["worlds", "bench", "lineage"],
        ["live"],
        ["verbs"],
    ],
    "sweeps": [["plan"], ["executors"], ["run"], ["report"]],
}
# The first pattern that matches a file says what of the other houses it may import.
BELOW = {
    "lightning_modules": [],
    "datamodules": ["lightning_modules.ranges"],
    "callbacks": ["lightning_modules.training", "datamodules.atomic", "datamodules.signals"],
    "experiments/runs": [
        "datamodules.atomic",
        "datamodules.json_files",
        "lightning_modules.ranges",
    ],
    "experiments": ["lightning_modules", "datamodules", "callbacks"],
    "sweeps/executors/worker.py": ["experiments.launch", "experiments.runs", "datamodules.signals"],
    "sweeps/executors/slurm_job.py": ["experiments.launch", "experiments.runs"],
    "sweeps/report": ["experiments.runs", "datamodules.atomic", "datamodules.shards.reader"],
    "sweeps": [
        "experiments.runs",
        "experiments.launch.ranks.topology",
        "datamodules.atomic",
        "datamodules.signals",
    ],
}
LIGHT = ("lightning_modules/__init__.py", "lightning_modules/ranges.py", "datamodules/atomic.py",
         "datamodules/json_files.py", "datamodules/signals.py", "experiments/__init__.py",
         "experiments/__main__.py",
         "experiments/runs", "experiments/verbs/__init__.py", "experiments/verbs/tools.py",
         "experiments/launch/__init__.py", "experiments/launch/checks.py",
         "experiments/live/__init__.py", "experiments/live/access.py",
         "experiments/live/command.py", "experiments/live/protocol.py",
         "experiments/live/server.py",
         "experiments/launch/execute.py", "experiments/launch/run_log.py",
         "experiments/launch/run_record.py",
         "experiments/launch/ranks", "experiments/launch/memory/cgroup.py",
         "experiments/worlds/__init__.py", "experiments/worlds/closed_form/__init__.py",
         "experiments/worlds/digits/__init__.py", "experiments/worlds/room/__init__.py",
         "experiments/worlds/wan/__init__.py",
         "sweeps/__main__.py", "sweeps/plan", "sweeps/executors", "sweeps/run")  # fmt: skip
HEAVY = ("torch", "lightning", "numpy", "diffusers", "transformers", "scipy")
FILES = files(ROOT)


def _floor(package, room):
    """Of the rooms that are not named (stages, say), the top one."""
    floors = FLOORS.get(package, [])
    return next((n for n, names in enumerate(floors) if room in names), len(floors))


@pytest.mark.parametrize("file", FILES)
def test_no_arrow_points_upwards(file):
    house, room = file.removesuffix(".py").split("/")[:2]
    allowed = next(names for start, names in BELOW.items() if file.startswith(start))
    for name in imports(ROOT, file):
        package, *inner = name.split(".")
        if package not in PACKAGES:
            continue
        if package != house:
            fits = any(name == floor or name.startswith(f"{floor}.") for floor in allowed)
            assert fits, f"{file} imports {name}; it may import {allowed}"
        elif inner and inner[0] != room and not room.startswith("__"):
            below = _floor(house, inner[0]) < _floor(house, room) or house == "callbacks"
            stages = house == "lightning_modules" and _floor(house, room) == len(FLOORS[house])
            below |= stages  # they inherit from each other
            assert below, f"{file} imports {name}, which lies on the same floor or above"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_of_folders(package):
    graph = rooms(ROOT, package)
    assert graph.nodes and not circles(graph) and not upward(graph)


LIGHT_FILES = [file for file in FILES if file.startswith(LIGHT)]


@pytest.mark.parametrize("file", LIGHT_FILES)
def test_planning_and_help_stay_light(file):
    tree = ast.parse((ROOT / file).read_text())
    for node in tree.body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not [name for name in names if name.split(".")[0] in HEAVY], file


@pytest.mark.parametrize("file", FILES)
def test_files_stay_short_and_say_what_they_are(file):
    text = (ROOT / file).read_text()
    assert len(text.splitlines()) <= 300, "a word is missing in the vocabulary"
    assert ast.get_docstring(ast.parse(text)), "no module docstring"


def test_no_source_is_ignored():
    """A pattern for results, such as `runs/`, must not hide a folder of code from git and ruff."""
    command = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", *PACKAGES]
    hidden = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert [name for name in hidden if name.endswith((".py", ".yaml", ".html", ".css"))] == []


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_unpickled(file):
    """Checkpoints and shards come from elsewhere; reading them must not run their code."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called = ast.unparse(node.func)
        words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert not called.startswith(("pickle.", "joblib.")), f"{file}: {called}"
        if called == "torch.load":
            assert words.get("weights_only") == "True", file
        if called in ("np.load", "numpy.load"):
            assert words.get("allow_pickle") == "False", file


def test_no_algorithm_knows_of_cameras():
    """Networks are bound to them before (`networks/cameras.py`)."""
    files = (ROOT / "lightning_modules" / "diffusion").glob("*.py")
    assert [each for each in files if "camera" in each.read_text(encoding="utf-8").lower()] == []
