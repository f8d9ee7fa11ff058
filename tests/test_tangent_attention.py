"""Attention with a tangent against the dense formula, its memory, and its Triton kernel."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from minimal import SHAPE, batch, draw, network
from tangent_cases import MATRICES, dense, error, expected, frame_mask, numbers
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.diffusion import forcing, visibility
from lightning_modules.diffusion.tangents import exact
from lightning_modules.networks.wan import attention, block, masks, tangent_attention

CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def dual(parts, dots, mask):
    """Output and tangent of `attend`, heads apart."""
    with torch.no_grad(), forward_ad.dual_level():
        duals = [
            part if dot is None else forward_ad.make_dual(part, dot)
            for part, dot in zip(parts, dots, strict=True)
        ]
        out = forward_ad.unpack_dual(attention.attend(*duals, mask))
    return [None if half is None else half.unflatten(-1, (-1, parts[0].shape[-1])) for half in out]


@given(
    name=st.sampled_from(list(MATRICES)),
    tokens=st.sampled_from([1, 3, 7, 16, 40]),
    cached=st.integers(0, 2),
    still=st.integers(0, 6),
    absent=st.sampled_from([(), (0,), (1,), (2,), (1, 2)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    tile=st.sampled_from([5, 16, 128]),
)
def test_output_and_tangent_are_those_of_the_dense_formula(
    name, tokens, cached, still, absent, dtype, tile
):
    mask = frame_mask(name, tokens, cached)
    frames = len(mask.rows)
    stills = (max(0, min(still, frames - 1) - cached) * tokens, min(still, frames - 1) * tokens)
    parts, dots = numbers(frames * tokens, (cached + frames) * tokens, dtype=dtype, still=stills)
    dots = [None if place in absent else dot for place, dot in enumerate(dots)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tangent_attention, "KEYS", tile)
        found = dual(parts, dots, mask)
    for ours, wanted in zip(found, expected(parts, dots, mask), strict=True):
        assert ours.dtype == dtype
        assert error(ours, wanted) < (2e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("absent", [(), (1, 2)])
def test_without_a_mask(absent):
    parts, dots = numbers(9, 300)
    dots = [None if place in absent else dot for place, dot in enumerate(dots)]
    for ours, wanted in zip(dual(parts, dots, None), expected(parts, dots, None), strict=True):
        assert error(ours, wanted) < 1e-6


def test_in_bfloat16_sums_are_float32_under_autocast_too():
    mask = frame_mask("teacher (1, 3)", 40)
    parts, dots = ([part.bfloat16() for part in half] for half in numbers(320, 320))
    plain = dual(parts, dots, mask)
    with torch.autocast("cpu", torch.bfloat16):
        within = dual(parts, dots, mask)
    assert all(map(torch.equal, plain, within)) and plain[1].dtype == torch.bfloat16
    assert error(plain[1], expected(parts, dots, mask)[1]) < 0.01
    whole, changes = numbers(320, 320)
    with torch.autocast("cpu", torch.bfloat16):
        assert error(dual(whole, changes, mask)[1], expected(whole, changes, mask)[1]) < 1e-6


def test_what_stands_still_takes_fewer_products():
    """Of clean queries none, of clean keys three in place of five."""
    mask, tokens = frame_mask("teacher (1, 1, 1, 1)", 128), 128
    products = {}
    for still in (0, 4):
        parts, dots = numbers(8 * tokens, 8 * tokens, still=(still * tokens, still * tokens))
        out, lse = tangent_attention.by_runs(*parts, mask)
        with FlopCounterMode(display=False) as counter:
            tangent_attention.tangent(*parts, out, lse, *dots, mask)
        products[still] = counter.get_total_flops() / (2 * tokens**2 * 12 * 2)
    clean, noisy_past, noisy_self = 10, 6, 4  # pairs of frames
    assert products[0] == 5 * (clean + noisy_past + noisy_self)
    assert products[4] == 3 * noisy_past + 5 * noisy_self


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that an operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = (leaf.nbytes for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))
        self.bytes = max(self.bytes, *sizes, 0)
        return out


@pytest.mark.parametrize("masked", [True, False])
def test_memory_is_linear_in_the_tokens(masked):
    largest = []
    for tokens in (64, 128, 256):
        parts, dots = numbers(8 * tokens, 8 * tokens)
        with Largest() as seen, forward_ad.dual_level():
            visible = MATRICES["teacher (2, 2)"] if masked else None
            mask = attention.attention_mask(visible, tokens, 0, CPU, torch.float32)
            attention.attend(*map(forward_ad.make_dual, parts, dots), mask)
        largest.append(seen.bytes)
    assert largest[1:] == [2 * size for size in largest[:-1]]
    assert largest[0] <= 8 * 64 * 2 * 128 * 4  # tokens, heads, a tile of keys, float32


def test_without_a_tangent_attention_is_what_it_was(monkeypatch):
    monkeypatch.setattr(tangent_attention, "attend", None)  # not to be called
    parts = [part.requires_grad_() for part in numbers(24, 24)[0]]
    mask = attention.attention_mask(MATRICES["causal (1, 3)"], 6, 0, CPU, torch.float32)
    assert isinstance(mask, torch.Tensor)
    for given_mask in (mask, None):
        ours = attention.attend(*parts, given_mask)
        heads = [part.transpose(1, 2) for part in parts]
        theirs = F.scaled_dot_product_attention(*heads, attn_mask=given_mask).transpose(1, 2)
        assert torch.equal(ours, theirs.flatten(2))
        grads = (torch.autograd.grad(out.square().sum(), parts) for out in (ours, theirs))
        assert all(map(torch.equal, *grads))
    with forward_ad.dual_level():  # of other numbers than these
        assert torch.equal(attention.attend(*parts), ours)


def test_a_pass_without_a_tangent_within_a_dual_level():
    parts, _ = numbers(24, 24)
    with torch.no_grad(), forward_ad.dual_level():
        mask = attention.attention_mask(MATRICES["causal (1, 3)"], 6, 0, CPU, torch.float32)
    out, tangent = dual(parts, (None,) * 3, mask)
    assert tangent is None and error(out, dense(*(p.double() for p in parts), mask)) < 1e-6


def test_a_network_has_the_tangent_of_the_dense_formula(monkeypatch):
    """Beneath no_grad, as the stages ask for it."""
    data, net, w = batch(2), network(1), draw(4, 2, *SHAPE)
    x, t = draw(3, 2, *SHAPE), torch.tensor([[0.3], [0.7]]).expand(2, SHAPE[0])

    def v(x, t):
        return forcing.teacher_forcing(net, x, t, data["text"], (1, 3), clean=data["latents"])

    with torch.no_grad():
        now = v(x, t)
        found = exact(v, x, t, w, now, 0.0)
        monkeypatch.setattr(block, "attend", lambda q, k, v, m=None: dense(q, k, v, m).flatten(2))
        wanted = exact(v, x, t, w, now, 0.0)
    assert error(found, wanted.double()) < 1e-5


def test_flex_attention_gives_the_same_output_and_sum_compiled_within_a_dual_level(monkeypatch):
    """Traced as on CUDA; without Triton's code, which a CPU has none of."""
    from torch.nn.attention.flex_attention import flex_attention

    traced = torch.compile(flex_attention, dynamic=False, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr(tangent_attention, "flex_kernel", lambda device: traced)
    mask = frame_mask("causal (2, 2)", 33, 1)
    parts, dots = numbers(132, 165)
    wanted = tangent_attention.by_runs(*parts, mask)
    with torch.no_grad(), forward_ad.dual_level():
        monkeypatch.setattr(tangent_attention, "by_runs", tangent_attention.by_flex)
        found = attention.attend(*map(forward_ad.make_dual, parts, dots), mask)
        primal, tangent = forward_ad.unpack_dual(found)
    assert error(primal, wanted[0].flatten(2).double()) < 1e-6
    assert error(tangent, expected(parts, dots, mask)[1].flatten(2)) < 1e-6
    torch.testing.assert_close(tangent_attention.by_flex(*parts, mask)[1], wanted[1])


@needs_triton
@pytest.mark.slow
def test_the_kernel_in_tritons_interpreter():
    program = Path(__file__).with_name("tangent_cases.py")
    path = os.pathsep.join([str(program.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout)
    assert len(errors) > 30 and not {n: e for n, e in errors.items() if not e < 2e-6}


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("masked, keys_move", [(True, True), (False, False)])
def test_the_kernel_compiles_for_an_h100(masked, keys_move, tmp_path, monkeypatch):
    """Ahead of time, at Wan's heads: it uses the tensor cores and fits the shared memory."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lightning_modules.networks.wan import tangent_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    half, kernel = torch.bfloat16, tangent_kernel._tangent
    constants = {
        "CHANNELS": 128, "WIDTH": 128, "TILE": tangent_kernel.TILE[half], "BLOCK": masks.TILE,
        "BLOCKS": 512, "MASKED": masked, "KEYS_MOVE": keys_move, "PRECISION": "ieee",
    }  # fmt: skip
    lists = dict.fromkeys(("partly_count", "partly", "entire_count", "entire"), "*i32")
    types = lists | {"table": "*u8"}
    if not masked:
        constants |= dict.fromkeys(types)
    types |= dict.fromkeys(constants, "constexpr") | {"lse": "*fp32", "moves": "*i32"}
    types |= dict.fromkeys(("q", "k", "v", "out", "q_dot", "k_dot", "v_dot", "result"), "*bf16")
    types |= {"scale": "fp32"}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", 90, 32),
        options={
            "num_warps": tangent_kernel.WARPS[half],
            "num_stages": tangent_kernel.STAGES[half],
        },
    )
    assert "wgmma" in compiled.asm["ptx"] and compiled.asm["cubin"]
    assert compiled.metadata.shared < 227 * 2**10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
@pytest.mark.parametrize(
    "dtype, channels, bound", [(torch.float32, 32, 1e-5), (torch.bfloat16, 128, 0.02)]
)
def test_on_cuda(dtype, channels, bound):
    for name in MATRICES:
        mask = frame_mask(name, 150, 1)
        frames = len(mask.rows)
        drawn = numbers(150 * frames, 150 * (frames + 1), channels, still=(0, 300))
        parts, dots = ([part.to("cuda", dtype) for part in half] for half in drawn)
        for ours, wanted in zip(dual(parts, dots, mask), expected(parts, dots, mask), strict=True):
            assert error(ours, wanted) < bound, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_on_cuda_teacher_forcing_at_full_length_is_linear_in_memory():
    """65,520 tokens, two heads: less than a tenth of the dense mask's 8 GiB."""
    visible, tokens = visibility.teacher_forcing_mask((1,) * 21), 1560
    shape = (1, 42 * tokens, 2, 128)
    parts, dots = (
        [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
        for _ in range(2)
    )
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad(), forward_ad.dual_level():
        mask = attention.attention_mask(visible, tokens, 0, parts[0].device, torch.bfloat16)
        out = attention.attend(*map(forward_ad.make_dual, parts, dots), mask)
        assert forward_ad.unpack_dual(out).tangent.isfinite().all()
    assert torch.cuda.max_memory_allocated() < 0.8 * 2**30
