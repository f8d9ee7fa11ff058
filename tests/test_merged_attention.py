"""Rectangles cover a mask exactly, and attention merged from them is that of the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_rollouts import make_net, setting

from lightning_modules.diffusion import forcing, visibility
from lightning_modules.networks.wan import attention, merged_attention
from lightning_modules.networks.wan.merged_attention import attend
from lightning_modules.networks.wan.rectangles import (
    Rectangle,
    best_parts,
    edges,
    rectangles,
)

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def masks(frames: int = 6):
    row = st.lists(st.booleans(), min_size=1, max_size=frames)
    return row.flatmap(
        lambda first: st.lists(
            st.lists(st.booleans(), min_size=len(first), max_size=len(first)),
            min_size=len(first),
            max_size=len(first),
        )
    ).map(lambda rows: tuple(map(tuple, rows)))


@given(rows=masks(), tokens=st.integers(1, 4), cached=st.integers(0, 3))
@settings(max_examples=100)
def test_rectangles_cover_what_is_seen_once(rows, tokens, cached):
    seen = torch.nn.functional.pad(torch.tensor(rows), (cached, 0), value=True)
    wanted = seen.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1).int()
    covered = torch.zeros_like(wanted)
    for part in (found := rectangles(rows, tokens, cached)):
        covered[slice(*part.queries), slice(*part.keys)] += 1
    assert torch.equal(covered, wanted)
    assert [part.area for part in found] == sorted((part.area for part in found), reverse=True)


def test_large_rectangles_do_most_of_teacher_forcing():
    """Of 21 frames: no more kernels than one for each frame and kind of keys, and larger ones."""
    rows = tuple(map(tuple, visibility.teacher_forcing_mask((1,) * 21).tolist()))
    found = rectangles(rows, 1, 0)
    assert len(found) < 70 and len(edges(found)) == 43
    work = sum(part.area for part in found)
    assert work == 21 * 22 // 2 + 21 * 20 // 2 + 21
    assert sum(part.area for part in found if part.area >= 9) > 0.7 * work


def by_formula(q, k, v, seen):
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)


def heads(queries, keys, device=CPU, dtype=torch.float64, heads=2, size=8):
    make = torch.Generator().manual_seed(7)
    shapes = [(2, length, heads, size) for length in (queries, keys, keys)]
    drawn = (torch.randn(shape, generator=make, dtype=torch.float64) for shape in shapes)
    return [each.to(device, dtype).requires_grad_() for each in drawn]


@given(rows=masks(4), tokens=st.integers(1, 3), cached=st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_merged_attention_and_its_gradients(rows, tokens, cached):
    """float64: nothing but the order of sums differs."""
    frames = torch.nn.functional.pad(torch.tensor(rows), (cached, 0), value=True)
    frames[:, -1] = True  # every query sees something
    rows = tuple(map(tuple, frames[:, cached:].tolist()))
    seen = frames.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
    parts = heads(*seen.shape)
    out = attend(*parts, rectangles(rows, tokens, cached))
    wanted = by_formula(*parts, seen)
    torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-9)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    ours, theirs = (torch.autograd.grad((each * weight).sum(), parts) for each in (out, wanted))
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_recomputed_network_trains_the_same(monkeypatch):
    random, text, noise = setting(frames=4)
    clean, t, found = random.normal("clean", noise.shape[1:]), random.uniform("t", (4,)), []
    for kernel in ("dense", "merged"):
        monkeypatch.setattr(attention, "_forced", kernel)
        net = make_net().train().requires_grad_()
        net.gradient_checkpointing = True
        v = forcing.teacher_forcing(net, noise, t, text, (1, 1, 2), clean=clean)
        v.square().mean().backward()
        found.append([each.grad for each in net.parameters()])
    for dense, merged in zip(*found, strict=True):
        torch.testing.assert_close(merged, dense, rtol=1e-4, atol=1e-6)


def test_heads_of_any_size_are_padded(monkeypatch):
    parts = heads(6, 6, size=5)
    monkeypatch.setattr(merged_attention, "_channels", lambda q: 8)
    seen = torch.ones(6, 6, dtype=torch.bool)
    out, wanted = attend(*parts), by_formula(*parts, seen)
    torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-9)
    ours, theirs = (torch.autograd.grad(each.sin().sum(), parts) for each in (out, wanted))
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_keys_split_into_parts(monkeypatch):
    """As on a GPU, where one clip's few queries do not fill it."""
    q, k, v = (each[:1].detach().float() for each in heads(6, 12))
    calls = []

    def counted(*qkv):
        calls.append([tuple(each.shape) for each in qkv])
        return merged_attention._cpu(*qkv)

    monkeypatch.setattr(merged_attention, "_kernel", lambda device: counted)
    monkeypatch.setattr(merged_attention, "parts_to_fill", lambda q, keys: 3)
    out = attend(q, k, v)
    assert calls == [[(3, 6, 2, 8), (3, 4, 2, 8), (3, 4, 2, 8)]], "one call, and keys not copied"
    seen = torch.ones(6, 12, dtype=torch.bool)
    torch.testing.assert_close(out, by_formula(q, k, v, seen), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_compiled_merge_writes_the_same():
    outs = [torch.randn(6, 2, 8) for _ in range(3)]
    lses = [torch.randn(2, 6) for _ in range(3)]
    written = []
    for merge in (merged_attention._merge, merged_attention._compiled_merge()):
        out, lse = torch.zeros(9, 2, 8), torch.zeros(2, 9)
        merge(out[2:8], lse[:, 2:8], outs, lses)
        written += [(out, lse)]
    for one, other in zip(*written, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert written[1][0][:2].abs().max() == 0


@pytest.mark.parametrize(
    "tiles, frames, parts",
    [(156, 1, 1), (156, 2, 3), (156, 8, 4), (300, 8, 3), (300, 1, 1), (1056, 8, 1)],
)
def test_the_number_of_parts_is_the_fastest_of_an_h100(tiles, frames, parts):
    """1 frame of queries, 2, or many, of 1,560 tokens and 12 heads: as measured (docs/wan.md)."""
    assert best_parts(tiles, 1560 * frames, 132) == parts


class OnCuda:
    """Queries of so many clips, as far as a choice asks."""

    def __init__(self, clips):
        self.shape, self.device = (clips, 1560, 12, 128), CUDA

    def __len__(self):
        return self.shape[0]


def test_a_cpu_and_a_batch_are_not_split(monkeypatch):
    monkeypatch.setattr(merged_attention, "_multiprocessors", lambda device: 132)
    assert merged_attention.parts_to_fill(torch.empty(1, 1560, 12, 8), 15600) == 1
    assert [merged_attention.parts_to_fill(OnCuda(clips), 15600) for clips in (1, 2)] == [4, 1]


@given(tiles=st.integers(1, 2000), keys=st.integers(1, 40_000), processors=st.integers(1, 200))
def test_parts_are_equal_and_not_too_small(tiles, keys, processors):
    parts = best_parts(tiles, keys, processors)
    assert keys % parts == 0 and (parts == 1 or keys // parts >= 1024)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
@pytest.mark.parametrize("whose", ["cudnn", "flash"])
def test_on_cuda(whose, monkeypatch):
    """Teacher forcing in bfloat16, forward and backward, by each library."""
    if whose == "cudnn" and merged_attention.library(CUDA) != "cudnn":
        pytest.skip("cuDNN's kernel is for Hopper")
    monkeypatch.setattr(merged_attention, "library", lambda device: whose)
    merged_attention._kernel.cache_clear()
    merged_attention._gradients.cache_clear()
    mask = visibility.teacher_forcing_mask((1, 2, 1))
    seen = mask.repeat_interleave(96, 0).repeat_interleave(96, 1).to(CUDA)
    parts = heads(*seen.shape, CUDA, torch.bfloat16, size=64)
    rows = tuple(map(tuple, mask.tolist()))
    out = attend(*parts, rectangles(rows, 96, 0))
    exact = [each.detach().double().requires_grad_() for each in parts]
    wanted = by_formula(*exact, seen)
    weight = torch.randn_like(wanted)
    ours = [out, *torch.autograd.grad((out * weight.bfloat16()).sum(), parts)]
    theirs = [wanted, *torch.autograd.grad((wanted * weight).sum(), exact)]
    for found, expected in zip(ours, theirs, strict=True):
        distance = (found.double() - expected).norm() / expected.norm()
        assert distance < 0.01, distance
    with torch.no_grad():
        one = [each[:1] for each in parts]
        whole = torch.ones_like(seen)
        close = attend(*one, (Rectangle((0, seen.shape[0]), (0, seen.shape[1])),))
        distance = close.double() - by_formula(*(each[:1] for each in exact), whole)
        assert distance.norm() / close.norm() < 0.01
    merged_attention._kernel.cache_clear()
    merged_attention._gradients.cache_clear()
