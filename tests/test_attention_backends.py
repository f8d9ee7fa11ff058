"""Every attention kernel equals the dense mask; none materialises a large attention matrix."""

import sys
import types

import pytest
import torch
from tiny_rollouts import make_net

from lightning_modules.diffusion import visibility
from lightning_modules.networks.wan import attention
from lightning_modules.networks.wan.attention import attend, attention_mask
from lightning_modules.networks.wan.flash_kernel import flash_kernel
from lightning_modules.networks.wan.flex_kernel import flex_kernel

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MATRICES = {
    "teacher forcing": visibility.teacher_forcing_mask((1, 2, 2)),
    "diffusion forcing": visibility.block_causal_mask((1, 2, 2)),
    "frame by frame": visibility.block_causal_mask((1,) * 5),
    "nobody but oneself": torch.eye(4, dtype=torch.bool),
}
eager_flex = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")]


@pytest.fixture
def forced(monkeypatch):
    """Force a kernel, whatever `use` would say of this device."""
    return lambda backend: monkeypatch.setattr(attention, "_forced", backend)


@pytest.fixture
def flash(monkeypatch):
    """A flash-attn made of its formula, that takes what flash-attn takes; counts its calls."""
    calls = []

    def flash_attn_func(queries, keys, values):
        assert queries.ndim == 4 and queries.stride(-1) == keys.stride(-1) == 1
        calls.append((queries.shape[1], keys.shape[1]))
        scores = torch.einsum("bqhd,bkhd->bhqk", queries, keys) / queries.shape[-1] ** 0.5
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), values)

    module = types.ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(attention, "flash_missing", lambda: None)
    flash_kernel.cache_clear()
    yield calls
    flash_kernel.cache_clear()


def heads(queries: int, keys: int, device=CPU, dtype=torch.float32) -> list[torch.Tensor]:
    make = torch.Generator().manual_seed(5)
    shapes = [(2, length, 2, 16) for length in (queries, keys, keys)]
    return [torch.randn(shape, generator=make).to(device, dtype) for shape in shapes]


def by_formula(queries, keys, values, visible, tokens, cached):
    """Softmax over what each token's frame sees."""
    frames = torch.nn.functional.pad(visible, (cached, 0), value=True)
    allowed = frames.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
    scores = torch.einsum("bqhd,bkhd->bhqk", queries, keys) / queries.shape[-1] ** 0.5
    weights = scores.masked_fill(~allowed.to(scores.device), -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, values).flatten(2)


@eager_flex
@pytest.mark.parametrize("tokens, cached", [(3, 0), (3, 2), (50, 0), (50, 1)])
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("backend", ["dense", "merged", "flex"])
@torch.no_grad()
def test_kernels_agree(name, tokens, cached, backend, forced):
    """Lengths that are no multiples of a tile, with and without a past."""
    visible = MATRICES[name]
    forced(backend)
    parts = heads(len(visible) * tokens, (cached + len(visible)) * tokens)
    mask = attention_mask(visible, tokens, cached, CPU, torch.float32)
    assert isinstance(mask, torch.Tensor) == (backend == "dense")
    expected = by_formula(*parts, visible, tokens, cached)
    torch.testing.assert_close(attend(*parts, mask), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens, cached", [(3, 0), (3, 2), (50, 1)])
@pytest.mark.parametrize("sizes", [(1, 2, 2), (1, 1), (1,) * 5])
@torch.no_grad()
def test_flash_attends_piece_by_piece(sizes, tokens, cached, forced, flash):
    """Where only the end of the keys is hidden, no mask is needed."""
    visible = visibility.block_causal_mask(sizes)
    forced("flash")
    parts = heads(len(visible) * tokens, (cached + len(visible)) * tokens)
    mask = attention_mask(visible, tokens, cached, CPU, torch.float32)
    expected = by_formula(*parts, visible, tokens, cached)
    half = [part.bfloat16() for part in parts]
    torch.testing.assert_close(attend(*half, mask).float(), expected, rtol=0.05, atol=0.05)
    attention.attend(*half)
    stops = torch.tensor(sizes).cumsum(0)
    pieces = [
        (size * tokens, (cached + int(stop)) * tokens)
        for size, stop in zip(sizes, stops, strict=True)
    ]
    assert flash == [*pieces, (parts[0].shape[1], parts[1].shape[1])]


@pytest.mark.parametrize("first", range(5))
@torch.no_grad()
def test_prefixes_lose_their_first_rows(first, forced, flash):
    """Flash-attn, which takes no mask: queries that see a prefix of the keys are one call each."""
    forced("flash")
    visible = visibility.block_causal_mask((1, 2, 2))
    q, k, v = (part.bfloat16() for part in heads(15, 15))
    whole = attend(q, k, v, attention_mask(visible, 3, 0, CPU, torch.bfloat16))
    mask = attention_mask(visible, 3, 0, CPU, torch.bfloat16, first)
    assert (mask is None) == (first >= 3), "the last block sees all"
    torch.testing.assert_close(attend(q[:, 3 * first :], k, v, mask), whole[:, 3 * first :])


@torch.no_grad()
def test_flash_needs_prefixes_and_half_precision(forced, flash):
    forced("flash")
    with pytest.raises(ValueError, match="launch.attention: flash-attn takes no mask"):
        attention_mask(MATRICES["teacher forcing"], 3, 0, CPU, torch.float32)
    with pytest.raises(ValueError, match="queries are torch.float32"):
        attend(*heads(6, 6))


@eager_flex
@pytest.mark.parametrize("backend", ["flex", "dense", "merged"])
@torch.no_grad()
def test_a_network_is_the_same_under_every_kernel(backend, forced):
    net = make_net()
    x, t, text = torch.randn(2, 6, 4, 4, 4), torch.rand(2, 6), torch.randn(2, 5, 8)
    call = {"frames": torch.arange(3).repeat(2), "visible": visibility.teacher_forcing_mask((1, 2))}
    expected = net(x, t, text, **call)
    forced(backend)
    torch.testing.assert_close(net(x, t, text, **call), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_tiles_agree(forced):
    """Compiled, FlexAttention visits the listed tiles alone; eager it reads the rule alone."""
    visible, tokens = MATRICES["teacher forcing"], 50
    forced("flex")
    parts = heads(len(visible) * tokens, len(visible) * tokens)
    mask = attention_mask(visible, tokens, 0, CPU, torch.float32)
    compiled = torch.compile(flex_kernel("cpu"), dynamic=False, fullgraph=True)
    out = compiled(*(part.transpose(1, 2) for part in parts), block_mask=mask)
    expected = by_formula(*parts, visible, tokens, 0)
    torch.testing.assert_close(out.transpose(1, 2).flatten(2), expected, rtol=1e-4, atol=1e-5)


class TestOnCuda:
    pytestmark = gpu

    @pytest.mark.parametrize("name", MATRICES)
    def test_flex_agrees_with_dense_and_so_do_its_gradients(self, name, forced):
        visible, tokens, cached, found = MATRICES[name], 390, 1, {}
        for backend in ("dense", "flex"):
            forced(backend)
            parts = heads(len(visible) * tokens, (cached + len(visible)) * tokens, CUDA)
            parts = [part.requires_grad_() for part in parts]
            out = attend(*parts, attention_mask(visible, tokens, cached, CUDA, torch.float32))
            grads = torch.autograd.grad(out.square().sum(), parts)
            found[backend] = [out.detach(), *grads]
        for ours, expected in zip(found["flex"], found["dense"], strict=True):
            torch.testing.assert_close(ours, expected, rtol=2e-2, atol=2e-2)  # TF32

    @pytest.mark.skipif(attention.flash_missing() is not None, reason="needs flash-attn")
    @torch.no_grad()
    def test_flash_agrees_with_dense(self, forced):
        visible, tokens, cached, found = visibility.block_causal_mask((1, 1)), 390, 3, {}
        parts = heads(2 * tokens, 5 * tokens, CUDA, torch.bfloat16)
        for backend in ("dense", "flash"):
            forced(backend)
            mask = attention_mask(visible, tokens, cached, CUDA, torch.bfloat16)
            found[backend] = attend(*parts, mask)
        torch.testing.assert_close(found["flash"], found["dense"], rtol=2e-2, atol=2e-2)

    def test_teacher_forcing_at_full_length_is_linear_in_memory(self, forced):
        """65,520 tokens, two heads: less than a tenth of the dense mask's 8 GiB."""
        forced("auto")
        visible, tokens = visibility.teacher_forcing_mask((1,) * 21), 1560
        shape = (1, 42 * tokens, 2, 128)
        parts = [torch.randn(shape, device=CUDA, dtype=torch.bfloat16) for _ in range(3)]
        parts = [part.requires_grad_() for part in parts]
        mask = attention_mask(visible, tokens, 0, CUDA, torch.bfloat16)
        torch.cuda.reset_peak_memory_stats()
        attend(*parts, mask).float().square().mean().backward()
        assert torch.cuda.max_memory_allocated() < 0.8 * 2**30
