"""Wan's VAE in fewer kernels is the same function."""

from copy import deepcopy

import pytest
import torch

from lightning_modules.networks.encoders.fused_vae import fuse, norm_silu
from lightning_modules.networks.encoders.wan_vae import WanDecoder
from tests.tiny_wan import CHANNELS


@pytest.fixture(scope="module")
def pair(wan_folder):
    from diffusers import AutoencoderKLWan

    plain = AutoencoderKLWan.from_pretrained(wan_folder / "vae").eval().requires_grad_(False)
    with torch.no_grad():  # as made, norms and biases are ones and zeros
        for weight in plain.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    fused = deepcopy(plain)
    fuse(fused)
    return plain, fused


@pytest.fixture(scope="module")
def latents():
    return torch.randn(2, CHANNELS, 4, 3, 2, generator=torch.Generator().manual_seed(1))


def near(mine, theirs):
    assert mine.shape == theirs.shape and theirs.std() > 0
    assert (mine - theirs).norm() < 1e-5 * theirs.norm()


def test_it_decodes_and_encodes_the_same(pair, latents):
    plain, fused = pair
    video = plain.decode(latents).sample
    near(fused.decode(latents).sample, video)
    near(fused.encode(video).latent_dist.mode(), plain.encode(video).latent_dist.mode())


def test_it_streams_the_same(pair, latents):
    one, two = (WanDecoder(vae, lambda piece: piece.transpose(1, 2)) for vae in pair)
    for piece in latents.transpose(1, 2).split((1, 3), 1):
        first, second = one.decode(piece), two.decode(piece)
        assert (first.int() - second.int()).abs().max() <= 1


def test_nothing_of_the_plain_form_is_left(pair):
    """A norm of another name would go on in ten kernels, and nobody would see."""
    from diffusers.models.autoencoders import autoencoder_kl_wan as wan

    _, fused = pair
    parents = [module for module in fused.modules() if not hasattr(module, "conv")]
    left = [type(child) for module in parents for child in module.children()]
    assert wan.WanCausalConv3d not in left and wan.WanUpsample not in left
    assert not any(hasattr(m, "nonlinearity") and m.nonlinearity.__class__ is torch.nn.SiLU
                   for m in fused.modules())  # fmt: skip
    assert fused.decoder.conv_in.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.slow
def test_the_kernel_on_a_cpu():
    from lightning_modules.networks.wan.compiled import compiled

    x, gamma = torch.randn(1, 6, 2, 4, 4).bfloat16(), torch.rand(6, 1, 1, 1).bfloat16()
    want = norm_silu(x.double(), gamma.double())
    near(compiled(norm_silu)(x.float(), gamma.float()), want.float())
    assert compiled(norm_silu)(x, gamma).dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_on_cuda_in_bfloat16(pair, latents):
    """As near to float32 as the plain form."""
    want = pair[0].double().decode(latents.double()).sample
    found = []
    for vae in pair:
        half = deepcopy(vae).to("cuda", torch.bfloat16)
        found.append(half.decode(latents.to("cuda", torch.bfloat16)).sample.double().cpu())
    plain, fused = ((each - want).norm() / want.norm() for each in found)
    assert fused < 1.1 * plain + 1e-3
