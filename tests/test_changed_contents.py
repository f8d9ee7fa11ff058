"""A run goes on with what it began with: what was changed since is refused, with the cure."""

import json
import re
import shutil

import numpy as np
import pytest
from test_contents import FIXTURES, LIBRARY, named, weights

from datamodules.shards.reader import ShardWriter
from experiments.__main__ import main
from experiments.launch.execute import execute
from experiments.runs.contents import fingerprint
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import Resolver, resolve, run_name
from experiments.runs.unchanged import check_contents


@pytest.fixture(autouse=True)
def _fixture_verbs(monkeypatch):
    monkeypatch.syspath_prepend(str(FIXTURES))


def made(tmp_path, path, **settings) -> RunFolder:
    run = resolve("join", "tiny", {"needs.student": {"folder": str(path)}, **settings}, LIBRARY)
    return RunFolder.create(run, tmp_path / "runs")


def begun(tmp_path, path) -> RunFolder:
    """A run that was interrupted after it began."""
    folder = made(tmp_path, path)
    check_contents(folder)
    return RunFolder(folder.path)


def test_the_recipe_in_the_folder_has_path_and_content_and_gives_the_name(tmp_path):
    path = weights(tmp_path / "F")
    folder = made(tmp_path, path)
    assert folder.recipe["needs"] == {"student": str(path)}
    assert folder.recipe["contents"] == {"student": fingerprint(path)}
    assert run_name(folder.recipe) == folder.name


def test_a_run_whose_weights_were_replaced_does_not_go_on(tmp_path):
    path = weights(tmp_path / "F")
    folder = made(tmp_path, path)
    weights(path, seed=1)
    with pytest.raises(ValueError, match=rf"{path}: replaced since {folder.name}.*as student"):
        execute(folder, package="fixture_verbs")
    weights(path)
    assert execute(RunFolder(folder.path), package="fixture_verbs")


def test_a_run_whose_weights_moved_says_so_and_is_found_where_they_are_now(tmp_path):
    path = weights(tmp_path / "F")
    folder = made(tmp_path, path)
    path.rename(tmp_path / "G")
    with pytest.raises(FileNotFoundError, match=rf"{path}: not there any more.*as student.*moved"):
        execute(folder, package="fixture_verbs")
    again = made(tmp_path, tmp_path / "G")
    assert again.path == folder.path and again.need("student") == tmp_path / "G"
    assert execute(again, package="fixture_verbs")
    (tmp_path / "G").rename(tmp_path / "H")
    done = made(tmp_path, tmp_path / "H")
    assert done.done and RunFolder(done.path).need("student") == tmp_path / "H"


def test_a_need_that_was_made_anew_is_noticed(tmp_path):
    """A run needs others by name, and nothing stops anybody from putting other results there."""
    run = resolve("join", "tiny", {}, LIBRARY)
    folders = {name: RunFolder.create(each, tmp_path) for name, each in run.closure().items()}
    for folder in list(folders.values())[:-1]:
        assert execute(folder, package="fixture_verbs")
    left, last = list(folders.values())[-2:]
    check_contents(last)
    assert last.read_record()["contents"] == {"student": fingerprint(left.path)}
    (left.path / "result.txt").write_text("another")
    left.mark_done()
    with pytest.raises(ValueError, match=rf"{left.path}: replaced since {last.name}.*remove"):
        execute(last, package="fixture_verbs")


@pytest.mark.parametrize("change", [("steps: 3", "steps: 4"), ("seed: 0", "seed: 1")])
def test_a_recipe_that_was_edited_is_refused_with_the_cure(tmp_path, change):
    folder = made(tmp_path, weights(tmp_path / "F"))
    file = folder.path / "recipe.yaml"
    text = file.read_text()
    assert change[0] in text
    file.write_text(text.replace(*change))
    said = rf"{re.escape(str(file))}: has been changed.*not of {folder.name}.*put the rest back"
    with pytest.raises(ValueError, match=said):
        execute(RunFolder(folder.path), package="fixture_verbs")
    RunFolder(folder.path).mark_done()
    needing = RunFolder(tmp_path / "runs" / "mine")
    needing.path.mkdir()
    needs = f"recipe: join\nverb: fit\nseed: 0\nneeds: {{student: {folder.name}}}\n"
    (needing.path / "recipe.yaml").write_text(needs)
    with pytest.raises(ValueError, match=said):
        needing.need("student")


def test_an_edited_recipe_is_one_line_on_the_command_line(tmp_path, capsys):
    folder = made(tmp_path, weights(tmp_path / "F"))
    file = folder.path / "recipe.yaml"
    file.write_text(file.read_text().replace("steps: 3", "steps: 4"))
    assert main(["fit", str(folder.path)], LIBRARY) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_launch_and_the_place_of_the_same_content_may_be_edited(tmp_path):
    folder = made(tmp_path, weights(tmp_path / "F"))
    (tmp_path / "F").rename(tmp_path / "G")
    file = folder.path / "recipe.yaml"
    text = file.read_text().replace("workers: 0", "workers: 2")
    file.write_text(text.replace(f"{tmp_path}/F", f"{tmp_path}/G"))
    assert execute(RunFolder(folder.path), package="fixture_verbs")


def test_a_hub_id_is_known_by_the_cached_revision_once_the_run_has_begun(tmp_path, monkeypatch):
    """Not by name: a download in the middle of a run must not rename it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    before = named("org/model")
    ref = tmp_path / "hub" / "models--org--model" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text("a" * 40)
    assert named("org/model") == before
    folder = begun(tmp_path, "org/model")
    assert folder.read_record()["contents"] == {"student": "a" * 40}
    ref.write_text("b" * 40)
    with pytest.raises(ValueError, match="org/model: replaced since"):
        execute(folder, package="fixture_verbs")


def test_a_finished_set_is_gone_on_with_after_its_encoders_moved(tmp_path):
    """Where they lay is in its manifest, and no part of what the set is."""

    def write(where, count):
        about = {"autoencoder": {"class": "WanVAE", "id": "0123", "folder": where}}
        writer = ShardWriter(
            tmp_path / "set", "prompts", about=about, samples_per_shard=1, resume=True
        )
        with writer:
            if count > len(writer.written):
                for n in range(len(writer.written), count):
                    writer.write(f"k{n}", {"text": np.ones((1, 2))}, {"caption": ""})
        return json.loads((tmp_path / "set" / "manifest.json").read_text())["count"]

    assert write("/old", 1) == 1 and write("/new", 2) == 2
    with pytest.raises(ValueError, match="another autoencoder"):
        ShardWriter(
            tmp_path / "set", "prompts", about={"autoencoder": {"id": "4567"}}, resume=True
        ).__enter__()


def test_manifests_name_what_was_used_and_not_where_it_lay(tmp_path):
    path = weights(tmp_path / "F")
    assert made(tmp_path, path).identity("student") == fingerprint(path)
    run = resolve("join", "tiny", {}, LIBRARY)
    assert RunFolder.create(run, tmp_path).identity("student") == run.needs["student"].name


def test_sources_may_be_deleted_after_use(tmp_path):
    """As raw videos are, which take terabytes; the runs made of them keep their names."""
    path, runs = weights(tmp_path / "F"), tmp_path / "runs"
    before = made(tmp_path, path)
    shutil.rmtree(path)
    settings = {"needs.student": {"folder": str(path)}}
    assert Resolver("tiny", LIBRARY, runs).resolve("join", settings).name == before.name
    assert Resolver("tiny", LIBRARY, tmp_path / "x").resolve("join", settings).name != before.name
    weights(path, seed=1)
    assert Resolver("tiny", LIBRARY, runs).resolve("join", settings).name != before.name
