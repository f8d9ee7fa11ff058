"""Who may import whom: the arrows of the architecture, read from the imports themselves."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("lightning_modules", "datamodules", "callbacks", "experiments", "sweeps")
# The first pattern that matches a file says what of ours it may import, beside its own package.
FLOORS = {
    "lightning_modules/diffusion/": ["lightning_modules.diffusion"],
    "lightning_modules/networks/": ["lightning_modules.networks"],
    "lightning_modules": ["lightning_modules"],
    "datamodules": ["datamodules"],
    "callbacks": ["callbacks", "lightning_modules.diffusion"],
    "experiments/recipe.py": ["experiments.layers"],
    "experiments/layers.py": ["experiments.references"],
    "experiments/references.py": [],
    "experiments/folder.py": ["experiments.recipe", "experiments.lease"],
    "experiments/lease.py": [],
    "experiments/metrics": [
        "experiments.metrics",
        "experiments.folder",
        "lightning_modules",
        "datamodules",
    ],  # fmt: skip
    "experiments": ["experiments", "lightning_modules", "datamodules", "callbacks"],
    "sweeps/worker.py": [
        "experiments.execute",
        "experiments.folder",
        "experiments.launch.parent",
        "experiments.launch.team",
    ],  # fmt: skip
    "sweeps/slurm_job.py": [
        "experiments.execute",
        "experiments.folder",
        "experiments.launch.team",
        "sweeps.executors.squeue",
        "sweeps.worker",
    ],  # fmt: skip
    "sweeps": [
        "sweeps",
        "experiments.recipe",
        "experiments.layers",
        "experiments.references",
        "experiments.folder",
        "experiments.lease",
        "experiments.launch.place",
    ],
}
LIGHT = ("experiments/recipe.py", "experiments/layers.py", "experiments/references.py",
         "experiments/folder.py", "experiments/lease.py", "experiments/__main__.py",
         "experiments/execute.py", "experiments/tools.py", "experiments/launch/place.py",
         "experiments/launch/team.py", "experiments/launch/rank.py", "experiments/provenance.py",
         "experiments/launch/parent.py", "experiments/launch/cgroup.py",
         "sweeps/graph.py", "sweeps/runner.py", "sweeps/checks.py", "sweeps/worker.py",
         "sweeps/__main__.py", "sweeps/costs.py", "sweeps/state.py", "sweeps/status.py",
         "sweeps/why.py", "sweeps/slurm_job.py", "sweeps/executors/__init__.py",
         "sweeps/executors/devices.py", "sweeps/executors/local.py",
         "sweeps/executors/resources.py", "sweeps/executors/slurm.py", "sweeps/executors/squeue.py",
         "sweeps/executors/submission.py")  # fmt: skip
HEAVY = ("torch", "lightning", "numpy", "diffusers", "transformers", "scipy")
FILES = sorted(str(path.relative_to(ROOT)) for name in OURS for path in (ROOT / name).rglob("*.py"))


def imports(file):
    """Dotted names that a file imports, wherever in it."""
    package = file.split("/")[:-1]
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES)
def test_no_arrow_points_upwards(file):
    allowed = next(floor for prefix, floor in FLOORS.items() if file.startswith(prefix))
    for name in imports(file):
        if name.split(".")[0] in OURS:
            fits = any(name == floor or name.startswith(f"{floor}.") for floor in allowed)
            assert fits, f"{file} imports {name}; it may import {allowed}"


@pytest.mark.parametrize("file", LIGHT)
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
