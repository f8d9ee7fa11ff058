"""`launch.attention: measured`: the fastest kernel under a mask, timed once and said in the log."""

import logging
import re
import time

import pytest
import torch
from posed_networks import posed_wan
from tiny_networks import tiny_wan
from tiny_rollouts import make_net

from lightning_modules.diffusion import visibility
from lightning_modules.networks.wan import attention
from lightning_modules.networks.wan.attention_probe import CALLS, fastest, random_parts
from lightning_modules.networks.wan.checkpointing import recomputes

CPU = torch.device("cpu")
VISIBLE = visibility.teacher_forcing_mask((1, 2))


def parts(queries, keys, gradient):
    return random_parts(queries, keys, (2, 8), CPU, torch.float32, gradient)


def attend(seconds: float, calls: list | None = None):
    """What makes a kernel that takes as long as it is told."""

    def kernel(q, k, v):
        time.sleep(seconds)
        if calls is not None:
            calls.append((q.shape, k.shape, q.dtype, q.requires_grad))
        return (q + k.mean() + v.mean()).flatten(2)

    return lambda: kernel


def raising():
    """Without memory for its mask."""
    raise torch.OutOfMemoryError("CUDA out of memory\nTried to allocate")


def failing():
    """A kernel that fails without a word, as compilers do."""

    def kernel(q, k, v):
        raise AssertionError

    return kernel


@pytest.fixture
def measured(monkeypatch):
    """As on CUDA; a CPU is refused it (`test_attention_choice.py`)."""
    monkeypatch.setattr(attention, "_forced", "measured")
    attention._fastest.cache_clear()
    yield
    attention._fastest.cache_clear()


def test_the_fastest_is_chosen_and_all_times_are_said(caplog):
    caplog.set_level(logging.INFO)
    calls = []
    kernels = {
        "slow": attend(0.05),
        "quick": attend(0.0, calls),
        "broken": raising,
        "mute": failing,
    }
    chosen = fastest(kernels, *parts(6, 9, True))
    assert chosen == "quick"
    assert calls == [((1, 6, 2, 8), (1, 9, 2, 8), torch.float32, True)] * CALLS
    assert "broken cannot be used here: OutOfMemoryError: CUDA out of memory" in caplog.text
    assert "mute cannot be used here: AssertionError\n" in caplog.text
    assert "quick where frames are hidden, measured with its backward pass" in caplog.text
    assert re.search(
        r"6 queries of 9 keys \(cpu\): slow [\d.e+]+ ms, quick [\d.e+-]+ ms", caplog.text
    )
    assert "Tried" not in caplog.text


def test_what_compiles_first_is_not_punished():
    begun = []

    def compiling(q, k, v):
        time.sleep(0.0 if len(begun) else 0.3)
        begun.append(1)
        return q.flatten(2)

    kernels = {"plain": attend(0.03), "compiled": lambda: compiling}
    assert fastest(kernels, *parts(4, 4, False)) == "compiled"


def test_where_none_works_the_reasons_are_given():
    with pytest.raises(RuntimeError, match=r"launch\.attention: no kernel .* a: OutOfMemoryError"):
        fastest({"a": raising}, *parts(4, 4, False))


def test_it_draws_from_no_generator_of_others():
    before = torch.get_rng_state()
    fastest({"a": attend(0.0)}, *parts(4, 4, True))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_is_the_same_and_each_mask_is_timed_once(measured, caplog):
    """With its own heads, and with the backward pass where there is one."""
    caplog.set_level(logging.INFO)
    net = make_net()
    x, t, text = torch.randn(2, 6, 4, 4, 4), torch.rand(2, 6), torch.randn(2, 5, 8)
    call = {"frames": torch.arange(3).repeat(2), "visible": VISIBLE}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_forced", "dense")
        expected = net(x, t, text, **call)
    for _ in range(2):
        torch.testing.assert_close(net(x, t, text, **call), expected, rtol=1e-5, atol=1e-5)
    said = [record.message for record in caplog.records if "measured" in record.message]
    assert len(said) == 1 and "merged" in said[0] and "dense" in said[0] and "flex" not in said[0]
    with torch.no_grad():
        net(x, t, text, **call)
    said = [record.message for record in caplog.records if "measured" in record.message]
    assert len(said) == 2 and "backward" in said[0] and "backward" not in said[1]


def test_a_mask_that_was_only_timed_is_not_kept(measured, monkeypatch):
    def fastest(kernels, *_):
        return "merged" if [made() for made in kernels.values()] else ""

    monkeypatch.setattr(attention, "fastest", fastest)
    before, visible = attention.dense_mask.cache_info().currsize, torch.ones(5, 5).tril() > 0
    attention.attention_mask(visible, 7, 0, CPU, torch.float32)
    assert attention.dense_mask.cache_info().currsize == before


def test_the_heads_of_cameras_count(measured, monkeypatch):
    asked = []
    monkeypatch.setattr(
        attention, "fastest", lambda _, q, *kv: asked.append(q.shape[2:]) or "dense"
    )
    for net in (tiny_wan(), posed_wan()):
        x = torch.zeros(1, 6, net.config.in_channels, 4, 4)
        net.rope_and_masks(x, tuple(range(6)), torch.ones(6, 6).tril() > 0, None)
    assert net.prope and asked[-1][0] == 2 * asked[0][0] == 2 * net.config.num_attention_heads


@pytest.mark.parametrize(("checkpointing", "calls"), [(False, 1), (True, 1), ("full", 2)], ids=str)
def test_what_checkpointing_recomputes_counts_twice(measured, monkeypatch, checkpointing, calls):
    """And without a gradient nothing is recomputed."""
    ran = []
    monkeypatch.setattr(attention, "attend", lambda q, k, v, mask: ran.append(1) or q.flatten(2))

    def fastest(kernels, *parts):
        ran.clear()
        kernels["merged"]()(*parts)
        return "merged"

    monkeypatch.setattr(attention, "fastest", fastest)
    visible = torch.ones(4, 4).tril() > 0
    how = visible, 2, 0, CPU, torch.float32, 0, (2, 8), checkpointing
    attention.attention_mask(*how)
    assert len(ran) == calls
    with torch.no_grad():
        attention.attention_mask(*how)
    assert len(ran) == 1


def test_attention_that_no_layer_keeps_is_recomputed():
    """FlexAttention is compiled as a whole: there is no output of a kernel to keep."""
    assert recomputes("flex", True) and not recomputes("flex", False)
    assert not recomputes("merged", True) and not recomputes("dense", True)


def test_beside_a_cache_nothing_is_timed(measured):
    """A rollout's fused commit hides frames at every length of the past."""
    mask = attention.attention_mask(VISIBLE, 3, 2, CPU, torch.float32)
    assert isinstance(mask, torch.Tensor) and attention._fastest.cache_info().currsize == 0


def test_the_choice_is_asked_again_after_use(measured):
    attention._fastest((((True, False), (True, True))), 3, CPU, torch.float32, (2, 8), False)
    assert attention._fastest.cache_info().currsize == 1
    attention.use("auto", CPU)
    assert attention._fastest.cache_info().currsize == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_cuda_kernels_are_timed_and_agree(measured, caplog, dtype):
    caplog.set_level(logging.INFO)
    device, tokens = torch.device("cuda"), 390
    parts = [torch.randn(1, 6 * tokens, 2, 64, device=device, dtype=dtype) for _ in range(3)]
    mask = attention.attention_mask(VISIBLE, tokens, 0, device, dtype, heads=(2, 64))
    (said,) = [record.message for record in caplog.records if "measured" in record.message]
    assert "flex" in said and ("merged" in said) == (dtype == torch.bfloat16)
    dense = attention.dense_mask(attention.hidden_rows(VISIBLE, 0), tokens, 0, device, dtype)
    expected = attention.attend(*parts, dense)
    torch.testing.assert_close(attention.attend(*parts, mask), expected, rtol=2e-2, atol=2e-2)
