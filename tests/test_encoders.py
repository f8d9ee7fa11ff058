"""The tiny world's autoencoder and text encoder: inverses, determinism, and refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.networks.encoders import (
    PatchTransform,
    TinyText,
    measure_patches,
)

pytestmark = pytest.mark.numeric

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
