"""docs/extending.md does what it says: its files and commands, in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from import_graph import PACKAGES

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^`(\S+)`\n\n```(?:python|yaml)\n(.*?)^```$", PAGE, re.M | re.S))
COMMANDS = re.search(r"^```sh\n(.*?)^```$", PAGE, re.M | re.S)[1].splitlines()


@pytest.mark.slow
def test_a_new_initialisation_is_a_stage_a_recipe_and_a_line_of_a_sweep(tmp_path):
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package)
    for name, text in FILES.items():
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(text)
    said = ""
    for command in COMMANDS:
        words = [sys.executable, *command.split()[1:], "--runs", str(tmp_path / "made")]
        done = subprocess.run(
            words,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said = done.stdout
    rows = [line for line in said.splitlines() if line.startswith("|")]
    (own,) = [row for row in rows if "clean_regression" in row or "clean regression" in row]
    assert re.search(r"\d\.\d{3}", own) and "not run" not in own
    assert len(list((tmp_path / "made").glob("stage2_clean_regression-*/student"))) == 1


def test_the_worked_example_costs_what_the_page_says():
    recipe = FILES["experiments/recipes/stage2_clean_regression.yaml"]
    assert len(recipe.splitlines()) <= 12 and len(FILES) == 3 and len(COMMANDS) == 2
