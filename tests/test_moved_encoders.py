"""A set's autoencoder is found where the recipe says it is now, if it is the same."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from datamodules.shards.reader import ShardWriter, open_shards
from experiments.generation.codec import autoencoder_of, follow_autoencoder
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import run_name
from lightning_modules.networks.encoders import WanVAE


@pytest.fixture
def wan(wan_folder, tmp_path) -> Path:
    shutil.copytree(wan_folder / "vae", tmp_path / "W" / "vae")
    return tmp_path / "W"


def run(runs: Path, recipe: str, **needs) -> RunFolder:
    tree = {"recipe": recipe, "verb": "sample", "seed": 0, "needs": needs}
    folder = RunFolder(runs / run_name(tree))
    folder.path.mkdir(parents=True, exist_ok=True)
    (folder.path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return folder


def prompts(folder: RunFolder, wan: Path):
    vae = WanVAE(wan)
    about = {"autoencoder": {"class": "WanVAE", "id": vae.id, "folder": str(wan)}}
    with ShardWriter(folder.path / "shards", "prompts", about=about) as writer:
        writer.write("one", {"text": np.zeros((2, 3), np.float32)}, {"caption": "a prompt"})
    return open_shards(folder.path / "shards")


def test_it_is_found_in_what_the_needs_name(tmp_path, wan):
    made = run(tmp_path / "runs", "vbench_prompts", wan=str(tmp_path / "new"))
    shards = prompts(made, wan)
    reader = run(tmp_path / "runs", "sample", prompts=made.name, student="org/model")
    follow_autoencoder(shards, reader)
    assert shards.manifest["autoencoder"]["folder"] == str(wan), "still there"
    wan.rename(tmp_path / "new")
    follow_autoencoder(shards, reader)
    assert autoencoder_of(shards.manifest).id == shards.manifest["autoencoder"]["id"]
    assert open_shards(shards.folder).manifest["autoencoder"]["folder"] == str(wan), "on the disk"


def test_another_one_is_not_taken_for_it_and_the_manifest_is_named(tmp_path, wan):
    made = run(tmp_path / "runs", "vbench_prompts", wan=str(tmp_path / "new"))
    shards = prompts(made, wan)
    reader = run(tmp_path / "runs", "sample", prompts=made.name)
    shutil.copytree(wan, tmp_path / "new")
    for place in (wan, tmp_path / "new"):
        config = place / "vae" / "config.json"
        text = config.read_text()
        config.write_text(re.sub(r'"latents_mean": \[\s*[-\d.]+', '"latents_mean": [0.5', text))
    manifest = re.escape(str(shards.folder / "manifest.json"))
    said = rf"{manifest}: its autoencoder \w+ lay in {wan} .* {wan}, {tmp_path}/new has another"
    with pytest.raises(ValueError, match=said):
        follow_autoencoder(shards, reader)
    shutil.rmtree(wan), shutil.rmtree(tmp_path / "new")
    with pytest.raises(ValueError, match=rf"{manifest}: .*and is not there\. Put it back, or say"):
        follow_autoencoder(shards, reader)


def test_sets_without_one_and_hub_ids_are_left_alone(tmp_path, wan):
    shards = prompts(run(tmp_path / "runs", "vbench_prompts"), wan)
    reader = run(tmp_path / "runs", "sample")
    for autoencoder in (None, {"class": "PatchTransform", "id": "0"}):
        shards.manifest["autoencoder"] = autoencoder
        follow_autoencoder(shards, reader)
    shards.manifest["autoencoder"] = {"class": "WanVAE", "id": "0", "folder": "org/model"}
    follow_autoencoder(shards, reader)
