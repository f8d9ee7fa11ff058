"""``sweeps students``: from a cell of a table to the run that one can watch."""

import json

import pytest
from test_cli import FIXTURES, LIBRARY

from sweeps.__main__ import main
from sweeps.plan.graph import load_sweep
from sweeps.run.students import chosen_cells, student_of

ROOM = ["students", "world_model", "--scale", "room"]
TWO_STEPS = ["--cell", "setting=1 frame, 2 steps", "--cell", "init=causal_cd"]


@pytest.fixture(scope="module")
def room():
    return load_sweep("world_model", "room")


def test_the_student_of_a_cell_is_what_its_samples_were_made_by(room):
    (cell,) = chosen_cells(room, ["setting=1 frame, 2 steps", "init=causal_cd"])
    found = student_of(cell.runs["stage3"]).recipe
    assert found["recipe"] == "stage3_asymmetric_dmd" and found["stage"]["few_steps"] == 2
    (teacher,) = chosen_cells(room, ["init=ar_teacher"])
    assert student_of(teacher.runs["stage3"]).recipe["recipe"] == "stage1_teacher_forcing"
    (ceiling,) = chosen_cells(room, ["init=ceiling"])
    assert student_of(ceiling.runs["stage3"]) is None


def test_its_folder_once_it_is_done(room, tmp_path, capsys):
    (cell,) = chosen_cells(room, ["setting=1 frame, 2 steps", "init=causal_cd"])
    name = student_of(cell.runs["stage3"]).name
    words = [*ROOM, "--runs", str(tmp_path), *TWO_STEPS]
    assert main([*words, "--paths"]) == 2
    assert "none of these 1 students of world_model is done" in capsys.readouterr().err
    assert main(words) == 0
    assert capsys.readouterr().out.split()[-2:] == [name, "new"]
    (tmp_path / name).mkdir()
    (tmp_path / name / "recipe.yaml").write_text("recipe: fit\n")
    (tmp_path / name / "done.json").write_text(json.dumps({"run": name}))
    assert main([*words, "--paths"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / name}\n"


@pytest.mark.parametrize(
    ("label", "said"),
    [("int=causal_cd", "did you mean 'init'? (there are: setting, init, seed)"),
     ("init", "no cell left has it"),
     ("init=causal", "no cell left has it (there are: ar_diffusion, causal_ode, causal_cd")],
)  # fmt: skip
def test_a_cell_that_is_not_there(label, said, capsys):
    assert main([*ROOM, "--cell", label]) == 2
    assert said in capsys.readouterr().err


def test_a_sweep_without_students(capsys):
    assert main(["students", str(FIXTURES / "diamond.yaml")], LIBRARY) == 0
    assert "student" in capsys.readouterr().out
