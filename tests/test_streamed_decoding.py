"""Decoding a clip piece by piece gives the frames of decoding it as a whole, bit for bit."""

import pytest
import torch

from lightning_modules.networks.encoders import PatchTransform, WanVAE


@pytest.fixture(scope="module")
def vae(wan_folder):
    return WanVAE(wan_folder)


@pytest.fixture(scope="module")
def latents():
    return torch.randn(1, 5, 16, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (3, 2), (1, 3, 1), (5,)], ids=str)
def test_pieces_are_the_whole(vae, latents, sizes):
    decoder = vae.stream()
    pieces = [decoder.decode(piece) for piece in latents.split(sizes, 1)]
    assert [piece.shape[1] for piece in pieces] == [4 * n - 3 * (i == 0) for i, n in
                                                    enumerate(sizes)]  # fmt: skip
    assert torch.equal(torch.cat(pieces, 1), vae.decode(latents))


def test_decoders_do_not_disturb_each_other(vae, latents):
    """Two streams in turn, and a whole clip in between, which clears the VAE's own cache."""
    other, whole = latents.flip(1), vae.decode(latents)
    one, two = vae.stream(), vae.stream()
    pieces = []
    for mine, theirs in zip(latents.split(1, 1), other.split(1, 1), strict=True):
        pieces.append(one.decode(mine))
        two.decode(theirs)
        vae.decode(other)
    assert torch.equal(torch.cat(pieces, 1), whole)
    assert not torch.equal(torch.cat([vae.decode(piece) for piece in latents.split(1, 1)], 1),
                           whole[:, :5])  # fmt: skip


def test_what_is_remembered_does_not_grow(vae, latents):
    decoder = vae.stream()

    def remembered():
        return sum(part.numel() for part in decoder._features if isinstance(part, torch.Tensor))

    counts = []
    for piece in latents.split(1, 1):
        decoder.decode(piece)
        counts.append(remembered())
    assert counts[2:] == counts[2:3] * 3


def test_patches_need_no_memory():
    transform = PatchTransform([0.0] * 16, 1.0)
    latents = torch.randn(2, 3, 16, 2, 2)
    pieces = [transform.stream().decode(piece) for piece in latents.split(1, 1)]
    assert torch.equal(torch.cat(pieces, 1), transform.decode(latents))
