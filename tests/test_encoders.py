"""Autoencoders and text encoders: inverses, normalisation, determinism, and refusals."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.networks.encoders import (
    PatchTransform,
    TinyText,
    WanText,
    WanVAE,
    measure_patches,
)

WORDS = [
    *("a", "zero", "one", "seven", "moving", "standing", "still", "left", "right", "up", "down"),
    *("fast", "slowly", ","),
]


def noise_video(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), colours=st.sampled_from([1, 3]))
def test_all_coefficients_lose_nothing(seed, colours):
    video = noise_video(seed, 2, 3, 16, 24, colours)
    transform = PatchTransform([0.1] * 64 * colours, 0.7, kept=64, pixel_channels=colours)
    latents = transform.encode(video)
    assert latents.shape == (2, 3, 64 * colours, 2, 3) and latents.dtype == torch.float32
    assert torch.equal(transform.decode(latents), video)


def test_transform_is_a_rotation():
    transform = PatchTransform([0.0] * 64, 1.0, kept=64)
    video = noise_video(0, 1, 1, 8, 8, 1)
    energy = (video.float() / 127.5 - 1).square().sum()
    torch.testing.assert_close(transform.encode(video).square().sum(), energy)


def test_sixteen_coefficients_keep_low_frequencies():
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    smooth = (127 + 60 * torch.sin(x / 8) + 40 * torch.cos(y / 9)).round().to(torch.uint8)
    video = smooth[None, None, :, :, None]
    transform = PatchTransform([0.0] * 16, 1.0)
    latents = transform.encode(video)
    assert latents.shape == (1, 1, 16, 4, 4)
    error = (transform.decode(latents).float() - video.float()).abs().max()
    assert error <= 3
    lossless = PatchTransform([0.0] * 64, 1.0, kept=64).encode(video)
    kept = lossless.unflatten(2, (8, 8))[:, :, :4, :4].flatten(2, 3)
    torch.testing.assert_close(latents, kept)
    torch.testing.assert_close(  # channel 0 is 8 x the patch's mean
        latents[0, 0, 0, 0, 0], 8 * (video[0, 0, :8, :8].float() / 127.5 - 1).mean()
    )


def test_measured_normalisation_is_unit():
    videos = [noise_video(seed, 2, 2, 16, 16, 1) // 2 for seed in range(4)]
    mean, std = measure_patches(videos)
    transform = PatchTransform(mean, std)
    latents = torch.cat([transform.encode(video) for video in videos])
    channels = latents.transpose(0, 2).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(channels.var(1, unbiased=False).mean(), torch.tensor(1.0))
    assert transform.id == PatchTransform(mean, std).id
    assert transform.id != PatchTransform(mean, std * 1.01).id


def test_patch_mistakes_are_refused():
    with pytest.raises(ValueError, match="square number"):
        PatchTransform([0.0] * 20, 1.0, kept=20)
    with pytest.raises(ValueError, match="16 means"):
        PatchTransform([0.0] * 4, 1.0)
    with pytest.raises(ValueError, match="divisible by 8"):
        PatchTransform([0.0] * 16, 1.0).encode(noise_video(0, 1, 1, 12, 16, 1))
    with pytest.raises(ValueError, match="variation"):
        measure_patches([torch.zeros(1, 1, 8, 8, 1, dtype=torch.uint8)])


@pytest.fixture(scope="module")
def wan_folder(tmp_path_factory):
    """A whole Wan folder, random and tiny."""
    from diffusers import AutoencoderKLWan
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    folder = tmp_path_factory.mktemp("wan")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKLWan(
            base_dim=3,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1 * i for i in range(16)],
            latents_std=[0.5 + 0.1 * i for i in range(16)],
        )
        config = UMT5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        text_encoder = UMT5EncoderModel(config)
    vae.save_pretrained(folder / "vae")
    text_encoder.save_pretrained(folder / "text_encoder")
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    sentences = ["a seven moving left, fast", "a cat walks on the grass", "still water at night"]
    tokenizer.train_from_iterator(
        sentences, trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>")
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        "$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    return folder


def test_wan_vae_normalises_with_its_config(wan_folder):
    from diffusers import AutoencoderKLWan

    vae = WanVAE(wan_folder)
    assert (vae.channels, vae.temporal_stride, vae.spatial_stride) == (16, 4, 8)
    video = noise_video(3, 1, 5, 16, 24, 3)
    latents = vae.encode(video)
    assert latents.shape == (1, 2, 16, 2, 3) and latents.dtype == torch.float32
    raw_vae = AutoencoderKLWan.from_pretrained(wan_folder / "vae")
    with torch.no_grad():
        pixels = (video.float() / 127.5 - 1).permute(0, 4, 1, 2, 3)
        raw = raw_vae.encode(pixels).latent_dist.mode().transpose(1, 2)
        mean = torch.tensor([0.1 * i for i in range(16)]).view(16, 1, 1)
        std = torch.tensor([0.5 + 0.1 * i for i in range(16)]).view(16, 1, 1)
        torch.testing.assert_close(latents, (raw - mean) / std, atol=1e-5, rtol=1e-5)
        shown = raw_vae.decode(raw.transpose(1, 2)).sample.permute(0, 2, 3, 4, 1)
    decoded = vae.decode(latents)
    assert decoded.shape == video.shape and decoded.dtype == torch.uint8
    expected = ((shown + 1) * 127.5).round().clamp(0, 255)
    assert (decoded.float() - expected).abs().max() <= 1
    assert vae.id == WanVAE(wan_folder).id and len(vae.id) == 16


def test_wan_vae_refuses_a_folder_without_normalisation(wan_folder, tmp_path):
    (tmp_path / "vae").mkdir()
    config = json.loads((wan_folder / "vae" / "config.json").read_text())
    del config["latents_std"]
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="latents_std must list 16 numbers"):
        WanVAE(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"vae/config.json is missing: point to"):
        WanVAE(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"1 \+ 4k frames"):
        WanVAE(wan_folder).encode(noise_video(0, 1, 4, 16, 16, 3))


def test_wan_text_zeroes_padding(wan_folder):
    text = WanText(wan_folder)
    assert (text.length, text.dim) == (512, 32)
    short, empty = text.encode(["a seven moving left, fast", ""])
    used = short.abs().sum(-1) > 0
    assert 3 <= used.sum() < 60 and not used[used.sum() :].any()
    assert (empty.abs().sum(-1) > 0).sum() == 1  # the end mark
    torch.testing.assert_close(text.encode(["a seven moving left, fast"])[0], short)
    longest = WanText(wan_folder, length=6).encode(["a seven " * 40])
    assert longest.shape == (1, 6, 32) and (longest.abs().sum(-1) > 0).all()
    assert text.id == WanText(wan_folder).id != WanText(wan_folder, length=6).id
    with pytest.raises(FileNotFoundError, match="text_encoder/config.json is missing"):
        WanText(wan_folder / "vae")


def test_tiny_text_is_a_function_of_its_seed():
    before = torch.random.get_rng_state()
    text = TinyText(WORDS)
    prompts = ["a seven moving left, fast", "a zero standing still", ""]
    embedded = text.encode(prompts)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert embedded.shape == (3, 12, 32) and embedded.dtype == torch.float32
    lengths = (embedded.abs().sum(-1) > 0).sum(1)
    assert lengths.tolist() == [7, 5, 1]
    again = TinyText(list(reversed(WORDS)))
    assert torch.equal(again.encode(prompts), embedded) and again.id == text.id
    assert TinyText(WORDS, seed=1).id != text.id
    assert not embedded.requires_grad


def test_tiny_text_tells_captions_apart():
    text = TinyText(WORDS)
    embedded = text.encode([f"a seven moving {way}, fast" for way in ("left", "right", "up")])
    distances = torch.cdist(embedded.flatten(1), embedded.flatten(1))
    assert distances[~torch.eye(3, dtype=torch.bool)].min() > 1


def test_tiny_text_refuses_unknown_words():
    with pytest.raises(ValueError, match=r"unknown words \['cat'\]"):
        TinyText(WORDS).encode(["a cat moving left, fast"])
    with pytest.raises(ValueError, match="more than 11 words"):
        TinyText(WORDS).encode(["a " * 12])
