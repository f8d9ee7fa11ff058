"""JSON files of our own that were cut off, edited or copied badly: file and cure are named."""

import json
import shutil
from pathlib import Path

import pytest

from datamodules.json_files import read_list, read_object
from datamodules.shards.reader import open_shards
from experiments.checkpoints import sampling_config
from experiments.runs.contents import MEMORY, remembered
from experiments.runs.folder import RunFolder
from experiments.worlds.digits.calibration import constants_of
from experiments.worlds.digits.probe_network import read_probe_meta
from experiments.worlds.wan.candidates import Candidates
from sweeps.__main__ import main as sweeps
from sweeps.plan.graph import load_sweep

SHARDS = Path(__file__).parent / "fixtures" / "run_of_8879c7c" / "clips-cadef773" / "shards"
DAMAGED = ["", '{"wall_s": 3, "con', "null", '"text"', "3", "\0\0\0"]


@pytest.mark.parametrize("text", DAMAGED)
def test_file_and_cure_are_named(tmp_path, text):
    file = tmp_path / "it.json"
    file.write_text(text)
    for read in (read_object, read_list):
        with pytest.raises(ValueError, match=r"it\.json is damaged: .*; make it again"):
            read(file, "make it again")


def test_a_list_is_no_object_and_an_object_no_list(tmp_path):
    file = tmp_path / "it.json"
    file.write_text("[1]")
    with pytest.raises(ValueError, match="holds no dict, but list"):
        read_object(file, "")
    assert read_list(file, "") == [1]
    file.write_text('{"a": 1}')
    with pytest.raises(ValueError, match="holds no list, but dict"):
        read_list(file, "")
    with pytest.raises(ValueError, match="has no b"):
        read_object(file, "", ("a", "b"))


READERS = {
    "record.json": lambda folder: RunFolder(folder).read_record(),
    MEMORY: remembered,
    "causal.json": sampling_config.read,
    "calibration.json": lambda folder: constants_of(folder, "probe", "reference"),
    "meta.json": read_probe_meta,
    "candidates.json": lambda folder: Candidates(folder).names(["a"]),
    "manifest.json": open_shards,
}


@pytest.mark.parametrize("text", DAMAGED)
@pytest.mark.parametrize("name", READERS)
def test_every_reader_names_the_file(tmp_path, name, text):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "000000.json").touch()
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"/{name} is damaged: .*; \w+"):
        READERS[name](tmp_path)


@pytest.mark.parametrize("verb", ["status", "table"])
def test_a_sweep_with_a_damaged_record_says_which(tmp_path, capsys, verb):
    run = tmp_path / next(iter(load_sweep("smoke", "tiny").runs))
    run.mkdir()
    (run / "done.json").touch()
    (run / "record.json").write_text('{"wall_s": 3, "con')
    assert sweeps([verb, "smoke", "--runs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{run}/record.json is damaged" in said and "remove it" in said


@pytest.mark.parametrize(
    "entry, value",
    [
        ("count", "8"),
        ("count", None),
        ("fields", []),
        ("fields", {"latents": {"shape": None, "dtype": "float16"}}),
        ("fields", {"latents": {"shape": [4, "4"], "dtype": "float16"}}),
        ("fields", {"latents": [4, 4]}),
        ("shards", None),
        ("shards", ["000000.tar"]),
        ("shards", [{"file": "000000.tar", "count": 8}]),
        ("autoencoder", "Wan"),
        ("text_encoder", ["T5"]),
    ],
)
def test_a_manifest_with_other_kinds_of_entries_is_damaged(tmp_path, entry, value):
    shutil.copytree(SHARDS, tmp_path / "shards")
    file = tmp_path / "shards" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {entry: value}))
    with pytest.raises(ValueError, match=rf"manifest\.json is damaged: {entry} is not"):
        open_shards(tmp_path / "shards")
