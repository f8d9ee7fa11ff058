"""Wan's VAE and text encoder compute what is published, and load when they are first used."""

import json
from hashlib import sha256

import pytest
import torch

from experiments.generation.codec import autoencoder_of
from lightning_modules.networks.encoders import WAN_NEGATIVE_PROMPT, WanText, WanVAE, wan_vae


def noise_video(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


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
