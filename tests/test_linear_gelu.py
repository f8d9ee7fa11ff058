"""GELU of a linear layer as one operator."""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.networks.wan.block import WanBlock
from lightning_modules.networks.wan.linear_gelu import linear_gelu


def inputs(dtype, *shape):
    draw = torch.Generator().manual_seed(0)
    sizes = (*shape, 8), (16, 8), (16,)
    return [torch.randn(size, generator=draw, dtype=torch.float64).to(dtype) for size in sizes]


@pytest.mark.parametrize("shape", [(5,), (2, 3), (1, 2, 3)], ids=str)
def test_it_is_gelu_of_the_product(shape):
    x, weight, bias = inputs(torch.float64, *shape)
    want = F.gelu(F.linear(x, weight, bias), approximate="tanh")
    assert torch.allclose(linear_gelu(x, weight, bias), want, atol=1e-12)


def test_the_compiler_knows_it():
    torch.library.opcheck(linear_gelu, inputs(torch.float32, 2, 3))


def test_a_fused_layer_is_the_layer():
    """In both dtypes, under autocast of float32 weights too."""
    layer = WanBlock(16, 32, 2, "rms_norm_across_heads", True, 1e-6).requires_grad_(False)
    x = torch.randn(1, 2, 3, 16)
    plain = layer._ffn(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer._ffn(x)
    layer.fuse()
    assert torch.allclose(layer._ffn(x), plain, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer._ffn(x), half) and half.dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_on_cuda():
    x, weight, bias = (each.cuda() for each in inputs(torch.bfloat16, 1, 2, 64))
    want = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
    found = linear_gelu(x, weight, bias)
    assert found.dtype == torch.bfloat16 and found.shape == want.shape
    assert (found.double() - want).norm() < 4e-3 * want.norm()
