"""A score run for VBench and all that VBench says about it."""

import shutil

import pytest
from vbench_files import MEANS, PROMPTS, judge, score_run

from sweeps.plan.graph import load_sweep


@pytest.fixture(scope="session")
def sweep():
    return load_sweep("ablation", "wan1.3b")


@pytest.fixture(scope="session")
def laid_out(sweep, tmp_path_factory):
    """A finished score run of causal CD at two steps, and all that VBench says about it."""
    runs = tmp_path_factory.mktemp("laid_out")
    labels = {"few_steps": 2, "init": "causal_cd", "seed": 0}
    (cell,) = [cell for cell in sweep.cells if cell.labels == labels]
    folder = score_run(cell.runs["stage3"], runs, PROMPTS)
    for name, mean in MEANS.items():
        judge(folder.path, name, mean)
    (folder.path / "vbench" / "results" / "version.txt").write_text("0.1.5\n")
    return folder.path


@pytest.fixture
def run(laid_out, tmp_path):
    shutil.copytree(laid_out.parent, tmp_path / "runs")
    return tmp_path / "runs" / laid_out.name
