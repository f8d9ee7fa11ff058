"""What a finished run made is used as it was when it ended, or not at all; the cure works."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from minimal_runs import SETTINGS, copied, finished, only
from safetensors.torch import load_file, save_file

from experiments.__main__ import main
from experiments.runs.contents import results
from experiments.runs.folder import RunFolder
from experiments.runs.unchanged import changed_result
from sweeps.report.results import read_score_run

STAGE1 = "stage1_teacher_forcing"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return copied(tmp_path_factory.mktemp("changed"), "stage2", "stage3")


@pytest.fixture
def runs(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_weights(path: Path) -> None:
    save_file({name: 2 * value for name, value in load_file(path).items()}, path)


CHANGES = {
    "the weights are replaced": (STAGE1, "student/diffusion_pytorch_model.safetensors",
                                 replace_weights, "has been replaced since"),
    "the weights are cut off": (STAGE1, "student/diffusion_pytorch_model.safetensors", cut,
                                "has been replaced since"),
    "the network is gone": (STAGE1, "student/config.json", Path.unlink, "is gone since"),
    "a shard is gone": ("heldout", "shards/000000.tar", Path.unlink, "is without 000000.tar since"),
    "a shard is cut off": ("heldout", "shards/000000.tar", cut, "is without 000000.tar since"),
    "the manifest is gone": ("heldout", "shards/manifest.json", Path.unlink, "is gone since"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_result_is_refused_wherever_it_is_used_and_the_cure_mends_it(
    runs, capsys, change
):
    recipe, file, do, message = CHANGES[change]
    folder = finished(runs, recipe)
    before = results(folder)
    do(folder / file)
    words = ["fit", "stage2_causal_cd", *SETTINGS, "--runs", str(runs)]
    assert main(words) == 1, "another run needs it"
    said = capsys.readouterr().err
    assert said.startswith(f"error: {folder}/") and message in said, said
    verb = RunFolder(folder).recipe["verb"]
    assert main([verb, str(folder), "--runs", str(runs)]) == 1, "it is asked for itself"
    assert message in capsys.readouterr().err
    assert main(["explain", str(folder), "--json"]) == 0
    explained = json.loads(capsys.readouterr().out)
    assert message in explained["runs"][folder.name]["changed"]

    removed, again = re.search(r"make it again: (rm .*); python -m experiments (.*)", said).groups()
    subprocess.run(removed, shell=True, check=True)
    assert main([*again.split(), "--runs", str(runs)]) == 0
    assert results(folder) == before, "made again, bit for bit"
    assert not changed_result(RunFolder(folder))


def test_what_is_added_previews_and_the_record_do_not_count(runs):
    folder = finished(runs, STAGE1)
    (folder / "notes.txt").write_text("mine")
    shutil.rmtree(folder / "samples", ignore_errors=True)
    RunFolder(folder).record({"wall_s": 1.0})
    (folder / "log.txt").write_text("")
    assert not changed_result(RunFolder(folder))


def test_runs_of_older_code_are_not_compared(runs):
    folder = finished(runs, STAGE1)
    (folder / "student" / "config.json").unlink()
    for older in ('{"run": "r", "ended": "then"}', "{}", ""):
        (folder / "done.json").write_text(older)
        assert not changed_result(RunFolder(folder))


def test_scores_that_lost_lines_are_refused(tmp_path):
    folder = RunFolder(tmp_path / "score")
    folder.path.mkdir()
    (folder.path / "recipe.yaml").write_text("{recipe: score, verb: score, seed: 0, needs: {}}")
    scores = folder.path / "scores.jsonl"
    lines = [json.dumps({"metric": name, "value": 1.0, "n": 8}) + "\n" for name in "ab"]
    scores.write_text("".join(lines))
    folder.mark_done()
    found = read_score_run(folder.path)
    assert found is not None and set(found.scores) == {"a", "b"}
    scores.write_text(lines[0])
    with pytest.raises(ValueError, match=r"scores.jsonl: it has been replaced since score ended"):
        read_score_run(folder.path)


def test_a_sweep_names_what_has_changed_and_starts_nothing(runs, tmp_path, capsys):
    from sweeps.__main__ import main as sweep

    clips = only(runs, "clips")
    one = tmp_path / "one.yaml"
    values = dict(setting.split("=", 1) for setting in SETTINGS)
    settings = "\n".join(f"  {key}: {value}" for key, value in values.items())
    one.write_text(f"settings:\n{settings}\ncells:\n- runs: {{data: {{recipe: clips}}}}\n")
    words = [str(one), "--runs", str(runs)]
    assert sweep(["run", *words]) == 0
    (clips / "shards" / "000000.tar").unlink()
    capsys.readouterr()
    assert sweep(["plan", *words]) == 0
    assert "is without 000000.tar" in capsys.readouterr().out
    assert sweep(["run", *words]) == 2
    assert "is without 000000.tar" in capsys.readouterr().err
