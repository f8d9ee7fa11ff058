"""What a recipe names by a path is known by its content, wherever it lies."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from datamodules.shards.reader import ShardWriter
from experiments.runs import contents
from experiments.runs.contents import fingerprint
from experiments.runs.recipe import Library, resolve

FIXTURES = Path(__file__).parent / "fixtures"
LIBRARY = Library(FIXTURES / "recipes", FIXTURES / "scale")


def weights(folder: Path, seed=0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tensors = {f"blocks.{n}.weight": torch.randn(64, 64) for n in range(3)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"num_layers": 3}')
    return folder


def shards(folder: Path, seed=0) -> Path:
    rng = np.random.default_rng(seed)
    about = {"autoencoder": {"class": "WanVAE", "id": "0123", "folder": str(folder)}}
    with ShardWriter(folder / "shards", "prompts", about=about) as writer:
        for number in range(3):
            text = rng.normal(size=(2, 3)).astype(np.float32)
            writer.write(f"k{number}", {"text": text}, {"caption": "a one"})
    return folder


def pictures(folder: Path, seed=0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "line-1.png").write_bytes(np.random.default_rng(seed).bytes(200))
    return folder


def prompts(folder: Path, seed=0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "all_dimension.txt").write_text(f"a cat number {seed}\n")
    return folder


def table(folder: Path, seed=0) -> Path:
    """Larger than what is read as a whole, beside videos."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "big.csv").write_bytes(np.random.default_rng(seed).bytes(contents.WHOLE + 999))
    return folder


KINDS = [weights, shards, pictures, prompts, table]


def named(path, recipe="join") -> str:
    return resolve(recipe, "tiny", {"needs.student": {"folder": str(path)}}, LIBRARY).name


@pytest.mark.parametrize("kind", KINDS)
def test_what_moved_is_the_same_and_what_was_replaced_is_not(tmp_path, kind):
    before = named(kind(tmp_path / "there"))
    (tmp_path / "there").rename(tmp_path / "elsewhere")
    assert named(tmp_path / "elsewhere") == before
    kind(tmp_path / "there", seed=1)
    assert named(tmp_path / "there") != before
    shutil.rmtree(tmp_path / "there")
    assert named(tmp_path / "there") != before, "a path to nothing is known by its text"


def test_one_relative_path_from_two_directories_is_two_contents(tmp_path, monkeypatch):
    weights(tmp_path / "a" / "F"), weights(tmp_path / "b" / "F", seed=1)
    names = {}
    for folder in ("a", "b"):
        monkeypatch.chdir(tmp_path / folder)
        names[folder] = named("F")
        assert names[folder] == named(tmp_path / folder / "F") == named("./F")
    assert names["a"] != names["b"]


def test_one_changed_tensor_among_many_is_seen(tmp_path):
    folder = weights(tmp_path / "F")
    before, tensors = fingerprint(folder), load_file(folder / "model.safetensors")
    for name in tensors:
        save_file(tensors | {name: tensors[name] * 1.01}, folder / "model.safetensors")
        assert fingerprint(folder) != before
    save_file(tensors, folder / "model.safetensors")
    assert fingerprint(folder) == before


def test_a_damaged_file_has_a_fingerprint_too(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com")
    pointer = fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    assert pointer and fingerprint(tmp_path) not in (None, pointer)


def test_a_supply_of_videos_may_grow_and_be_mended(tmp_path):
    """Else one video more, or a dangling link less, would forfeit a curation's finished shards."""
    folder = prompts(tmp_path / "openvid")
    (folder / "videos").mkdir()
    (folder / "videos" / "x.mp4").symlink_to(tmp_path / "nowhere")
    (folder / "folder.mp4").mkdir()
    before = fingerprint(folder)
    (folder / "videos" / "x.mp4").unlink(), (folder / "folder.mp4").rmdir()
    (folder / "OpenVid_part1.zip").write_bytes(b"more")
    assert fingerprint(folder) == before


def test_what_a_run_logs_is_not_its_content(tmp_path):
    run = weights(tmp_path / "run" / "student").parent
    (run / "recipe.yaml").write_text("x: 1")
    before = fingerprint(run)
    for name in ("log.txt", "record.json", "done.json", "checkpoints/a.json", "tb/b.txt"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("{}")
    assert fingerprint(run) == before


def test_a_circle_of_links_ends(tmp_path):
    folder = weights(tmp_path / "F")
    (folder / "again").symlink_to(folder)
    assert fingerprint(folder)


def test_looking_costs_little(tmp_path, monkeypatch):
    """A network of many tensors, and a folder of many videos, without reading either."""
    folder = weights(tmp_path / "F")
    (folder / "videos").mkdir()
    for number in range(2000):
        os.mknod(folder / "videos" / f"{number}.mp4")
    save_file({f"w{n}": torch.zeros(8) for n in range(2000)}, folder / "many.safetensors")
    read = 0
    pread = os.pread

    def counted(*arguments):
        nonlocal read
        data = pread(*arguments)
        read += len(data)
        return data

    monkeypatch.setattr(os, "pread", counted)
    assert fingerprint(folder)
    assert read < 1e6
