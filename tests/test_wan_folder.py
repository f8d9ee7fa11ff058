"""Wan's parts from a pipeline folder: read as published, and refused when half there."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.checkpoints.networks import load_network
from experiments.generation.codec import autoencoder_of
from lightning_modules.networks.encoders import WAN_NEGATIVE_PROMPT, WanText, WanVAE, wan_vae


@pytest.fixture
def hurt(wan_folder, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(wan_folder, tmp_path / "copy"))


def noise_video(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


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


# -- what they compute -----------------------------------------------------------------------------


def test_wan_vae_normalises_with_its_config(wan_folder):
    from diffusers import AutoencoderKLWan

    vae = WanVAE(wan_folder)
    assert (vae.channels, vae.temporal_stride, vae.spatial_stride) == (16, 4, 8)
    video = noise_video(3, 1, 5, 16, 24, 3)
    latents = vae.encode(video)
    assert latents.shape == (1, 2, 16, 2, 3) and latents.dtype == torch.float32
    raw_vae = AutoencoderKLWan.from_pretrained(wan_folder / "vae")
    config = json.loads((wan_folder / "vae" / "config.json").read_text())
    with torch.no_grad():
        pixels = (video.float() / 127.5 - 1).permute(0, 4, 1, 2, 3)
        raw = raw_vae.encode(pixels).latent_dist.mode().transpose(1, 2)
        mean, std = (
            torch.tensor(config[f"latents_{name}"]).view(16, 1, 1) for name in ("mean", "std")
        )
        torch.testing.assert_close(latents, (raw - mean) / std, atol=1e-5, rtol=1e-5)
        shown = raw_vae.decode(raw.transpose(1, 2)).sample.permute(0, 2, 3, 4, 1)
    decoded = vae.decode(latents)
    assert decoded.shape == video.shape and decoded.dtype == torch.uint8
    expected = ((shown + 1) * 127.5).round().clamp(0, 255)
    assert (decoded.float() - expected).abs().max() <= 1
    with pytest.raises(ValueError, match=r"1 \+ 4k frames"):
        vae.encode(noise_video(0, 1, 4, 16, 16, 3))


def test_wan_vae_runs_in_bfloat16_on_cuda_alone(wan_folder, monkeypatch):
    made = []
    monkeypatch.setattr(wan_vae, "load_part", lambda *_, torch_dtype: made.append(torch_dtype))
    about = {"class": "WanVAE", "id": WanVAE(wan_folder).id, "folder": str(wan_folder)}
    for device, dtype in (("cpu", None), ("cuda:1", None), ("cuda", torch.float32)):
        with pytest.raises(AttributeError):  # there is nothing to move to the device
            autoencoder_of({"autoencoder": about}, device, dtype).load()
    assert made == [torch.float32, torch.bfloat16, torch.float32]


def test_wan_vae_in_bfloat16_decodes_the_same_pictures(wan_folder):
    latents = torch.randn(1, 2, 16, 2, 3, generator=torch.Generator().manual_seed(0))
    whole = WanVAE(wan_folder).decode(latents).float()
    half = WanVAE(wan_folder, dtype=torch.bfloat16).decode(latents).float()
    assert half.shape == whole.shape and not torch.equal(half, whole)
    assert (half - whole).abs().mean() < 2  # of 255


@pytest.mark.parametrize("key", ["latents_mean", "latents_std"])
def test_a_vae_without_normalisation_is_refused(hurt, key):
    path = hurt / "vae" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    with pytest.raises(ValueError, match=rf"vae/config.json: {key} must list 16 numbers"):
        WanVAE(hurt)


def test_wan_text_zeroes_padding(wan_folder):
    text = WanText(wan_folder)
    assert (text.length, text.dim) == (512, 32)
    short, empty = text.encode(["a seven moving left, fast", ""])
    used = short.abs().sum(-1) > 0
    assert used.sum() == 6 and not used[used.sum() :].any()  # five words and the end mark
    assert (empty.abs().sum(-1) > 0).sum() == 1
    torch.testing.assert_close(text.encode(["a seven moving left, fast"])[0], short)
    longest = WanText(wan_folder, length=6).encode(["a seven " * 40])
    assert longest.shape == (1, 6, 32) and (longest.abs().sum(-1) > 0).all()
    assert text.id == WanText(wan_folder).id != WanText(wan_folder, length=6).id


def test_wan_text_is_that_of_stock_diffusers(wan_folder):
    """Prompt and negative prompt, cleaned and padded, as the published pipeline embeds them."""
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(wan_folder)
    prompt = "a  seven &amp; a cat\n “moving” left"
    with torch.no_grad():
        theirs = pipeline.encode_prompt(
            prompt, negative_prompt=WAN_NEGATIVE_PROMPT, max_sequence_length=512
        )
    text = WanText(wan_folder)
    torch.testing.assert_close(text.encode([prompt, WAN_NEGATIVE_PROMPT]), torch.cat(theirs))
    assert torch.equal(*text.encode([prompt, 'a seven & a cat "moving" left']))
    hashed = sha256(WAN_NEGATIVE_PROMPT.encode()).hexdigest()  # of the published string
    assert hashed.startswith("ce96e0324e4b54ce")


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


def test_encoders_load_when_first_used_and_only_then(wan_folder, monkeypatch):
    """Building one, and asking for its identity, reads no weights into a model."""
    from diffusers import AutoencoderKLWan
    from transformers import AutoTokenizer, UMT5EncoderModel

    for kind in (AutoencoderKLWan, UMT5EncoderModel, AutoTokenizer):
        monkeypatch.setattr(kind, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    vae, text = WanVAE(wan_folder), WanText(wan_folder)
    assert vae.id and text.id and vae.channels == 16 and text.dim == 32
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        vae.encode(noise_video(0, 1, 1, 8, 8, 3))


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
