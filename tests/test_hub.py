"""The hub's cache, and the autoencoder of a network's latents, local or on the hub."""

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.shards.reader import ShardReader, ShardWriter, open_shards
from experiments.__main__ import main
from experiments.checkpoints.networks import autoencoder_id, load_network
from experiments.generation.generation import require_autoencoder
from lightning_modules.networks.encoders import WanText, WanVAE

HUB_ID = "tiny/wan"


@pytest.fixture
def hub(wan_folder, tmp_path, monkeypatch) -> Path:
    """The hub's cache, offline, with the tiny pipeline in it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / f"models--{HUB_ID.replace('/', '--')}"
    revision = "0" * 40
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(revision)
    shutil.copytree(wan_folder, cached / "snapshots" / revision)
    return cached / "snapshots" / revision


def test_a_hub_id_is_read_from_the_cache(hub, wan_folder):
    assert WanVAE(HUB_ID).id == WanVAE(wan_folder).id
    assert WanText(HUB_ID).source == HUB_ID
    ours, theirs = load_network(HUB_ID), load_network(wan_folder)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_what_the_cache_lacks_is_refused_with_the_command(hub):
    with pytest.raises(FileNotFoundError) as refused:
        load_network("tiny/other")
    assert "hf download tiny/other --include 'transformer/*'" in str(refused.value)
    shutil.rmtree(hub / "vae")
    with pytest.raises(FileNotFoundError, match=r"vae"):
        WanVAE(HUB_ID)
    with pytest.raises(FileNotFoundError, match="no such folder; give a Wan 2.1 folder"):
        load_network("./nowhere/at/all")


# -- which autoencoder ---------------------------------------------------------------------------


@pytest.fixture
def other(wan_folder, tmp_path) -> Path:
    """A pipeline with another VAE."""
    return with_other_vae(Path(shutil.copytree(wan_folder, tmp_path / "other")))


def with_other_vae(pipeline: Path) -> Path:
    path = pipeline / "vae" / "config.json"
    config = json.loads(path.read_text())
    config["latents_mean"][0] += 0.5
    path.write_text(json.dumps(config))
    return pipeline


def shards_of(folder: Path, pipeline: Path) -> ShardReader:
    """Prompts whose clips are latents of that pipeline's VAE."""
    about = {"autoencoder": {"id": WanVAE(pipeline).id}}
    with ShardWriter(folder / "shards", "prompts", about=about) as writer:
        writer.write("one", {"text": np.zeros((2, 3), np.float32)}, {"caption": "a prompt"})
    return open_shards(folder / "shards")


def test_a_hub_ids_vae_is_fetched_and_compared(other, wan_folder, tmp_path, monkeypatch):
    """The network alone was fetched before; a hub hands out what it is asked for."""

    def download(_name: str, allow_patterns: list[str]) -> str:
        for file in filter(Path.is_file, other.rglob("*")):
            name = file.relative_to(other)
            if any(name.match(pattern) for pattern in allow_patterns):
                (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, tmp_path / "cache" / name)
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    load_network(HUB_ID)
    fetched = {path.name for path in (tmp_path / "cache").iterdir()}
    assert fetched == {"transformer", "model_index.json"}
    require_autoencoder("teacher", HUB_ID, shards_of(tmp_path / "a", other))
    with pytest.raises(ValueError, match=f"but the teacher {HUB_ID} was made with"):
        require_autoencoder("teacher", HUB_ID, shards_of(tmp_path / "b", wan_folder))


def test_an_exported_student_knows_its_vae(other, wan_folder, tmp_path):
    """Also after it was exported once more, and wherever it stands."""
    for source, name in ((other, "once"), (tmp_path / "once", "twice")):
        assert main(["export", str(source), "--to", str(tmp_path / name)]) == 0
        said = json.loads((tmp_path / name / "causal.json").read_text())
        assert said["autoencoder"] == WanVAE(other).id == autoencoder_id(tmp_path / name)
    require_autoencoder("student", tmp_path / "twice", shards_of(tmp_path / "a", other))
    moved = shutil.move(tmp_path / "twice", shutil.copytree(wan_folder, tmp_path / "wan") / "mine")
    with pytest.raises(ValueError, match="but the student .*mine was made with .* curate with"):
        require_autoencoder("student", Path(moved), shards_of(tmp_path / "b", wan_folder))


def test_a_transformer_folder_is_of_the_pipeline_around_it_or_of_the_vae_in_it(other, tmp_path):
    assert autoencoder_id(other / "transformer") == autoencoder_id(other) == WanVAE(other).id
    alone = Path(shutil.copytree(other / "transformer", tmp_path / "alone" / "student"))
    assert autoencoder_id(alone) is None
    shutil.copytree(other / "vae", alone / "vae")
    assert autoencoder_id(alone) == WanVAE(other).id


def test_a_silent_side_is_told(wan_folder, tmp_path, caplog):
    alone = tmp_path / "score"
    shutil.copytree(wan_folder / "transformer", alone / "transformer")
    shards = shards_of(tmp_path / "set", wan_folder)
    with caplog.at_level(logging.WARNING):
        require_autoencoder("teacher", alone, shards)
        (record,) = caplog.records
        assert re.match(
            f"the teacher {alone} does not name its autoencoder, .* {shards.folder}", record.message
        )
        shards.manifest["autoencoder"] = None
        require_autoencoder("teacher", wan_folder, shards)
        assert (
            f"{shards.folder}/manifest.json does not name its autoencoder"
            in caplog.records[1].message
        )
        require_autoencoder("teacher", alone, shards)  # of a world without autoencoder
        require_autoencoder("teacher", wan_folder, shards_of(tmp_path / "b", wan_folder))
    assert len(caplog.records) == 2
