"""A call of which the last frames are asked for equals the whole call, cut afterwards.

Keys and values have the same bits, since they come from the same products. Of velocities that is
not claimed: a library may sum a product of fewer rows in another order, which is a few units in the
last place (`ROUNDING`). In float64 they and all gradients agree to 1e-12.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from posed_networks import matrices, posed_wan
from test_attention_backends import by_formula, eager_flex, heads
from tiny_networks import PARTITIONS, F, asked, tiny_wan, two_time_wan
from torch.autograd import forward_ad

from lightning_modules.diffusion import forcing, visibility
from lightning_modules.networks.cameras import Posed
from lightning_modules.networks.wan import attention
from lightning_modules.networks.wan.attention import attend, attention_mask
from lightning_modules.networks.wan.rotary import rope_table

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
ROUNDING = {"rtol": 1e-5, "atol": 5e-6}
NETWORKS = {"wan": tiny_wan, "two times": two_time_wan, "cameras": posed_wan}


@st.composite
def visible(draw) -> torch.Tensor:
    """Any mask in which every frame sees some frame."""
    frames = draw(st.integers(1, 6))
    bits = draw(st.lists(st.booleans(), min_size=frames**2, max_size=frames**2))
    matrix = torch.tensor(bits).view(frames, frames)
    return matrix | torch.diag(~matrix.any(1))


@eager_flex
@pytest.mark.parametrize("kernel", ["dense", "merged", "flex", "tangent"])
@given(visible=visible(), first=st.integers(0, 5), cached=st.integers(0, 2))
@settings(max_examples=25)
@torch.no_grad()
def test_every_form_of_a_mask_loses_its_first_rows(kernel, visible, first, cached):
    tokens, frames = 3, len(visible)
    first = min(first, frames - 1)
    q, k, v = heads(frames * tokens, (cached + frames) * tokens)
    expected = by_formula(q, k, v, visible, tokens, cached)[:, first * tokens :]
    q, before = q[:, first * tokens :], attention._forced
    attention._forced = "auto" if kernel == "tangent" else kernel
    try:
        if kernel == "tangent":
            with forward_ad.dual_level():
                mask = attention_mask(visible, tokens, cached, CPU, torch.float32, first)
                found = forward_ad.unpack_dual(attend(q, k, v, mask)).primal
        else:
            found = attend(q, k, v, attention_mask(visible, tokens, cached, CPU, q.dtype, first))
    finally:
        attention._forced = before
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def of(name):
    """A network, bound to cameras if it needs some, and a batch for it."""
    net = NETWORKS[name]()
    batch = asked(net)
    return net, (Posed(net, matrices()) if name == "cameras" else net), batch


def half_clean(batch, dtype=torch.float32):
    """The arguments of teacher forcing's call."""
    x = torch.cat([batch["clean"], batch["noisy"]], 1).to(dtype)
    return x, batch["t"].repeat(1, 2).to(dtype), batch["text"].to(dtype)


@pytest.mark.parametrize("backend", ["dense", "merged"])
@pytest.mark.parametrize("name", NETWORKS)
@given(data=st.data())
@settings(max_examples=10)
@torch.no_grad()
def test_a_network_predicts_the_same_of_the_last_frames(name, backend, data):
    net, bound, batch = of(name)
    matrix, before = data.draw(visible()), attention._forced
    frames = len(matrix)
    predicted = data.draw(st.integers(0, frames))
    call = [part[:, :frames] for part in half_clean(batch)[:2]]
    how = {"frames": torch.arange(frames) % F, "visible": matrix}
    attention._forced = backend
    try:
        whole = bound(*call, batch["text"], **how)
        found = bound(*call, batch["text"], **how, predicted=predicted)
    finally:
        attention._forced = before
    assert found.shape[1] == predicted and found.dtype == torch.float32
    torch.testing.assert_close(found, whole[:, frames - predicted :], **ROUNDING)


@torch.no_grad()
def test_in_half_precision():
    net, _, batch = of("wan")
    with torch.autocast("cpu", torch.bfloat16):
        mask = visibility.teacher_forcing_mask((1, 2, 3))
        how = {"frames": torch.arange(F).repeat(2), "visible": mask}
        whole, found = (net(*half_clean(batch), **how, predicted=n) for n in (None, F))
    torch.testing.assert_close(found, whole[:, F:], rtol=0.02, atol=0.02)


@pytest.fixture
def in_float64(monkeypatch):
    """Where a network says float32, whatever the precision."""
    rope_table.cache_clear()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    yield
    rope_table.cache_clear()


@pytest.mark.filterwarnings("ignore:.*kept in float32")
@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_whole_call(name, partition, recomputed, in_float64):
    """Of teacher forcing, in all weights and in both halves of the input."""
    net, bound, batch = of(name)
    net.double().train().gradient_checkpointing = recomputed
    if name == "cameras":
        bound.cameras = bound.cameras.double()
    sizes, found = PARTITIONS[partition], []
    clean, noisy, t, text = (part.double() for part in batch.values())

    def cut(*args, predicted, **how):
        return bound(*args, **how)[:, predicted:]

    for call in (bound, cut):
        inputs = [each.clone().requires_grad_() for each in (noisy, clean)]
        v = forcing.teacher_forcing(call, inputs[0], t, text, sizes, inputs[1])
        grads = torch.autograd.grad(v.pow(3).sum(), [*net.parameters(), *inputs])
        found.append([v.detach(), *grads])
    assert all(each.dtype == torch.float64 for each in found[0])
    for ours, expected in zip(*found, strict=True):
        assert (ours - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("capacity", [None, 5])
@pytest.mark.parametrize("name", ["wan", "cameras"])
@torch.no_grad()
def test_a_commit_writes_the_same(name, capacity, fused):
    """Keys and values of every layer, whatever is predicted beside; in growing and fixed caches."""
    net, bound, batch = of(name)
    if fused:
        for block in net.blocks:
            block.fuse()
    x, t, text = batch["clean"], 0 * batch["t"], batch["text"]
    held = []
    for predicted in (None, 2, 1, 0):
        cache = bound.new_cache(capacity)
        for block, sizes in ((slice(0, 2), (2,)), (slice(2, 5), (1, 2))):
            how = {"frames": torch.arange(F)[block], "predicted": predicted}
            how["visible"] = visibility.block_causal_mask(sizes)
            v = bound(x[:, block], t[:, block], text, cache=cache, write_cache=True, **how)
            assert v.shape[1] == (len(how["frames"]) if predicted is None else predicted)
        assert cache.frames == (0, 1, 2, 3, 4)
        held.append([part.clone() for n in range(3) for part in cache.read(n)])
    exactly = {} if fused else {"rtol": 0, "atol": 0}  # fused with q, they are of another product
    for others in held[1:]:
        torch.testing.assert_close(others, held[0], **exactly)
