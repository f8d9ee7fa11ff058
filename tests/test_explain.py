"""``explain``: what lies at a path, and by which runs it was made."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from datamodules.shards.reader import ShardWriter
from experiments.__main__ import main
from experiments.generation.mp4 import write_mp4

BEGUN = Path(__file__).parent / "fixtures" / "run_of_8879c7c"
FIT, DATA = "stage2_causal_cd-9af996de", "clips-cadef773"
STAGE1 = "stage1_teacher_forcing-cbd6c95c"
CODE = "8879c7c05eb41b7a18cd1ae58732f46135c942eb"
SAMPLE = "sampled"  # no name with a hash, so that its recipe may be short
TABLE = "init,seed,run,folder,metric,value\ncd,0,after,{0},a,1.5\nar,0,after,{1},a,2.5\n"


@pytest.fixture(scope="module")
def library_of_runs(tmp_path_factory):
    runs = tmp_path_factory.mktemp("explained") / "runs"
    shutil.copytree(BEGUN, runs)
    sample = runs / SAMPLE
    sample.mkdir()
    (sample / "recipe.yaml").write_text(
        f"recipe: sample\nverb: sample\nseed: 3\nneeds: {{student: {STAGE1}, prompts: {DATA},"
        f" pictures: {runs / STAGE1 / 'student'}}}\n"
    )
    (sample / "record.json").write_text('{"contents": {"pictures": "0123456789abcdef"}}')
    with ShardWriter(sample / "shards", "videos", about={"seed": 3}) as writer:
        for key in ("clip-0", "clip-1"):
            video = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 1), np.uint8)
            writer.write(key, {"video": video}, {"caption": f"a [bold]{key}[/]"})
            write_mp4(sample / "videos" / f"{key}.mp4", video, 8)
    (runs / "tables").mkdir()
    (runs / "tables" / "records.csv").write_text(TABLE.format(FIT, SAMPLE))
    return runs


@pytest.fixture
def runs(library_of_runs, tmp_path):
    return Path(shutil.copytree(library_of_runs, tmp_path / "runs"))


def explained(capsys, path, *words) -> dict:
    assert main(["explain", str(path), *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_checkpoint_names_all_that_made_it(capsys, library_of_runs):
    found = explained(capsys, library_of_runs / FIT / "checkpoints" / "last.ckpt")
    assert (found["what"], found["step"], found["made_by"]) == ("checkpoint", 13, [FIT])
    assert list(found["runs"])[0] == FIT and set(found["runs"]) == {
        FIT, STAGE1, DATA, "heldout-a7749591", "base-8a3a61bc"
    }  # fmt: skip
    run = found["runs"][FIT]
    assert (run["recipe"], run["verb"], run["scale"]) == ("stage2_causal_cd", "fit", "tiny")
    assert (run["code"], run["device"], run["devices"], run["seed"]) == (CODE, "cpu", 1, 0)
    assert run["wall_s"] == pytest.approx(16.5, abs=0.1) and run["versions"]["torch"]
    assert run["settings"]["stage"]["decay"] == 0.98 and "launch" not in run["settings"]
    assert run["needs"]["teacher"] == run["needs"]["student"] == STAGE1
    data = found["runs"][DATA]["data"]
    assert (data["kind"], data["count"], data["split"], data["shards"]) == ("clips", 8, "train", 1)
    assert found["runs"]["base-8a3a61bc"]["state"] == "missing"


def test_a_clip_is_found_by_its_mp4_and_in_its_shard(capsys, library_of_runs):
    sample = library_of_runs / SAMPLE
    by_file = explained(capsys, sample / "videos" / "clip-1.mp4")
    by_shard = explained(capsys, sample / "shards" / "000000.tar" / "clip-1")
    for found in (by_file, by_shard):
        assert (found["what"], found["key"], found["shard"]) == ("clip", "clip-1", "000000.tar")
        assert found["info"]["caption"] == "a [bold]clip-1[/]" and found["made_by"] == [SAMPLE]
        assert found["runs"][SAMPLE]["seed"] == 3
    assert by_file["frames"] == 4
    pictures = by_file["runs"][SAMPLE]["needs"]["pictures"]
    assert pictures["content"] == "0123456789abcdef" and "replaced" in pictures["state"]


def test_shards_weights_runs_and_results(capsys, library_of_runs):
    shard = explained(capsys, library_of_runs / DATA / "shards" / "000000.tar")
    assert (shard["what"], shard["count"], shard["made_by"]) == ("shard", 8, [DATA])
    weights = library_of_runs / STAGE1 / "student" / "diffusion_pytorch_model.safetensors"
    assert explained(capsys, weights)["tensors"] == 42
    assert explained(capsys, library_of_runs / STAGE1)["what"] == "run"
    assert explained(capsys, library_of_runs / STAGE1 / "record.json")["what"] == "result"


def test_a_cell_of_a_table(capsys, library_of_runs):
    table, runs = library_of_runs / "tables" / "records.csv", ["--runs", str(library_of_runs)]
    found = explained(capsys, table, "init=ar", "metric=a", *runs)
    assert found["made_by"] == [SAMPLE] and STAGE1 in found["runs"]
    assert [line["value"] for line in found["values"]] == ["2.5"]
    assert explained(capsys, table, *runs)["made_by"] == [FIT, SAMPLE]


def test_the_tree_can_be_read(capsys, library_of_runs):
    assert main(["explain", str(library_of_runs / SAMPLE / "videos" / "clip-0.mp4")]) == 0
    said = capsys.readouterr().out
    for words in ("caption a [bold]clip-0[/]", f"made by: {SAMPLE}", f"student: {STAGE1}", CODE,
                  "0:00:27 wall, 0.00755 device-hours", "8 clips, shards: 1", "1 x cpu",
                  "base-8a3a61bc: not there any more", f"prompts: {DATA} (see above)"):  # fmt: skip
        assert words in re.sub(r"\s+", " ", said), words


DAMAGES = {
    f"{FIT}/checkpoints/last.ckpt": "damaged",
    f"{STAGE1}/student/diffusion_pytorch_model.safetensors": "fetch or write it again",
    f"{DATA}/shards/000000.tar": "fetch it again",
    f"{SAMPLE}/videos/clip-0.mp4": "fetch or write it again",
    f"{SAMPLE}/recipe.yaml": "not readable as YAML",
    f"{SAMPLE}/record.json": "remove it",
    f"{SAMPLE}/shards/manifest.json": "write the set again",
    "tables/records.csv": "make it again: python -m sweeps table",
}


@pytest.mark.parametrize("path", DAMAGES)
def test_what_is_damaged_is_refused(capsys, runs, path):
    file = runs / path
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    assert main(["explain", str(file), "--runs", str(runs)]) == 1
    said = capsys.readouterr().err
    assert str(file) in said and DAMAGES[path] in said and "bug" not in said, said


def test_a_tar_with_other_bytes_is_refused(capsys, runs):
    tar = runs / DATA / "shards" / "000000.tar"
    content = bytearray(tar.read_bytes())
    content[-1] ^= 1
    tar.write_bytes(content)
    assert main(["explain", str(tar)]) == 1
    assert "has changed since it was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "path, words, said",
    [
        ("gone", [], "there is nothing; .* give a path in your runs folder"),
        ("tables", [], "it lies in no run folder .* explained by its original"),
        (f"{SAMPLE}/shards/000000.tar/clip-7", [], "no clip 'clip-7'.*its 2 clips are clip-0 to"),
        (FIT, ["init=cd"], "init=cd chooses from a records.csv"),
        ("tables/records.csv", ["inti=cd"], "no such column.*did you mean 'init'"),
        ("tables/records.csv", ["init=xd"], r"no line left has it \(there are: cd, ar\)"),
        ("tables/records.csv", ["--runs", "elsewhere"], "is not in .*elsewhere; give --runs"),
    ],
)
def test_what_is_none_of_ours_is_refused(capsys, library_of_runs, path, words, said):
    assert main(["explain", str(library_of_runs / path), *words]) == 1
    assert re.search(said, capsys.readouterr().err)


def test_an_edited_recipe_is_refused(capsys, runs):
    recipe = runs / STAGE1 / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("steps: 150", "steps: 151"))
    assert main(["explain", str(runs / FIT)]) == 1
    assert "has been changed" in capsys.readouterr().err
