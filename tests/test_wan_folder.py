"""A folder of Wan's parts: known by its content, and refused when it is half there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.checkpoints.networks import load_network
from experiments.generation.codec import autoencoder_of
from lightning_modules.networks.encoders import WanText, WanVAE


@pytest.fixture
def hurt(wan_folder, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(wan_folder, tmp_path / "copy"))


def shards(part: Path, count: int = 3) -> list[Path]:
    """Spread a part's weights over files with an index, as the published ones are."""
    (file,) = part.glob("*.safetensors")
    weights, stem = load_file(file), file.stem
    file.unlink()
    weight_map = {}
    for number, name in enumerate(sorted(weights)):
        weight_map[name] = f"{stem}-{number % count + 1:05d}-of-{count:05d}.safetensors"
    for shard in sorted(set(weight_map.values())):
        inside = {name: weights[name] for name, home in weight_map.items() if home == shard}
        save_file(inside, part / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (part / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return sorted(part.glob("*.safetensors"))


@pytest.mark.parametrize("key", ["latents_mean", "latents_std"])
def test_a_vae_without_normalisation_is_refused(hurt, key):
    path = hurt / "vae" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    with pytest.raises(ValueError, match=rf"vae/config.json: {key} must list 16 numbers"):
        WanVAE(hurt)


def test_identity_is_of_content_not_of_files(wan_folder, wan_score_folder, hurt):
    assert WanVAE(wan_folder).id == WanVAE(wan_score_folder).id
    assert WanText(wan_folder).id == WanText(wan_score_folder).id
    for part in ("vae", "text_encoder"):
        shards(hurt / part)
        path = hurt / part / "config.json"
        about = {"_diffusers_version": "9", "transformers_version": "9"}
        path.write_text(json.dumps(json.loads(path.read_text()) | about))
    assert WanVAE(hurt).id == WanVAE(wan_folder).id
    assert WanText(hurt).id == WanText(wan_folder).id
    file = next((hurt / "vae").glob("*.safetensors"))
    weights = load_file(file)
    weights[min(weights)].view(-1)[0] += 1e-6
    save_file(weights, file)
    assert WanVAE(hurt).id != WanVAE(wan_folder).id
    words = hurt / "tokenizer" / "tokenizer.json"
    words.write_text(words.read_text().replace("grass", "glass"))
    assert WanText(hurt).id != WanText(wan_folder).id


# -- half-downloaded -------------------------------------------------------------------------------

PARTS = {"transformer": load_network, "vae": WanVAE, "text_encoder": WanText}


def remove_config(part):
    (part / "config.json").unlink()


def cut_config(part):
    (part / "config.json").write_text((part / "config.json").read_text()[:-9])


def remove_weights(part):
    next(part.glob("*.safetensors")).unlink()


def cut_weights(part):
    file = next(part.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 12\n"


def point_to_lfs(part):
    next(part.glob("*.safetensors")).write_text(POINTER)


def remove_shard(part):
    shards(part)[1].unlink()


def cut_shard(part):
    file = shards(part)[1]
    file.write_bytes(file.read_bytes()[:-100])


def remove_index(part):
    shards(part)
    next(part.glob("*.index.json")).unlink()


def mix_shards(part):
    first, second, _ = shards(part)
    shutil.copy(first, second)


def pickle(part):
    file = next(part.glob("*.safetensors"))
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


def lose_a_weight(part):
    file = next(part.glob("*.safetensors"))
    weights = load_file(file)
    weights.pop(max(weights))
    save_file(weights, file)


DAMAGE = {
    remove_config: r"config.json",
    cut_config: r"not readable as JSON .*download or copy the folder again",
    remove_weights: r"has no weights \(\*.safetensors\): download or copy",
    cut_weights: r"is truncated or damaged \(.* bytes\): download or copy",
    point_to_lfs: r"git-lfs pointer, not the file itself; run there: git lfs pull",
    remove_shard: r"1 of 3 weight files are missing \(.*-00002-of-00003.safetensors\): download",
    cut_shard: r"-00002-of-00003.safetensors is truncated or damaged",
    remove_index: r"has shards, but no index",
    mix_shards: r"-00002-of-00003.safetensors has no \S+, which its index lists",
    pickle: r"a pickle, which is never read; if you trust it",
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_half_a_folder_is_refused_before_anything_is_loaded(hurt, part, damage):
    damage(hurt / part)
    with pytest.raises((ValueError, FileNotFoundError), match=DAMAGE[damage]) as refused:
        PARTS[part](hurt)
    assert str(hurt) in str(refused.value)


@pytest.mark.parametrize("part", PARTS)
def test_a_weight_that_is_missing_is_not_drawn_at_random(hurt, part):
    lose_a_weight(hurt / part)
    with pytest.raises(ValueError, match="has no weights for"):
        made = PARTS[part](hurt)
        getattr(made, "_vae" if part == "vae" else "_model")


@pytest.mark.parametrize("part", PARTS)
def test_sharded_folders_load_as_whole_ones(hurt, wan_folder, part):
    shards(hurt / part)
    one, other = PARTS[part](hurt), PARTS[part](wan_folder)
    if part != "transformer":
        attribute = "_vae" if part == "vae" else "_model"
        one, other = getattr(one, attribute), getattr(other, attribute)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, r"neither tokenizer.json nor spiece.model: download or copy"),
        ("tokenizer.json", POINTER, r"tokenizer.json is a git-lfs pointer.*git lfs pull"),
        ("tokenizer.json", '{"version": ', r"tokenizer.json: not readable as JSON .*download"),
        ("tokenizer_config.json", None, r"has no tokenizer_config.json: .*download or copy"),
        ("tokenizer_config.json", POINTER, r"tokenizer_config.json is a git-lfs pointer"),
        ("tokenizer_config.json", "[]", r"tokenizer_config.json: not a mapping of settings"),
        ("spiece.model", POINTER, r"spiece.model is a git-lfs pointer"),
    ],
)
def test_half_a_tokenizer_is_refused_before_anything_is_loaded(hurt, file, content, message):
    path = hurt / "tokenizer" / file
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refused:
        WanText(hurt)
    assert str(hurt) in str(refused.value)


def test_what_is_json_but_no_tokenizer_is_refused_with_the_cure(hurt):
    (hurt / "tokenizer" / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ValueError, match="tokenizer: a tokenizer that does not load .*copy the"):
        WanText(hurt).encode(["a cat"])


def test_a_manifest_leads_back_to_its_vae(wan_folder, hurt):
    vae = WanVAE(hurt)
    manifest = {
        "autoencoder": {"class": "WanVAE", "id": vae.id, "folder": vae.source, "dtype": "float32"},
        "normalisation": {"mean": vae.mean, "std": vae.std},
    }
    latents = torch.randn(1, 2, 16, 2, 2)
    assert torch.equal(autoencoder_of(manifest).decode(latents), vae.decode(latents))
    manifest["autoencoder"]["id"] = "another"
    with pytest.raises(ValueError, match="manifest's autoencoder is another, but found"):
        autoencoder_of(manifest)
    shutil.rmtree(hurt)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        autoencoder_of(manifest)
