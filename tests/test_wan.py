"""Wan against stock diffusers, and its additions: tables, precisions, checkpointing."""

import json

import pytest
import torch
from diffusers import AutoModel, WanTransformer3DModel
from tiny_networks import TINY, C, F, H, L, W, asked, causal_matrix, shake, tiny_wan

from lightning_modules.networks import Wan
from lightning_modules.networks.wan.attention import attend, attention_mask
from lightning_modules.networks.wan.rms_norm import rms_norm
from lightning_modules.networks.wan.rotary import rope_table


@pytest.fixture(scope="module")
def net() -> Wan:
    return tiny_wan()


@pytest.fixture
def batch(net) -> dict[str, torch.Tensor]:
    return asked(net)


def stock_velocity(stock, x, t, text):
    """Stock diffusers: [B, C, F, H, W] and one timestep per token."""
    tokens = (x.shape[3] // 2) * (x.shape[4] // 2)
    steps = (1000 * t).repeat_interleave(tokens, 1)
    return stock(x.transpose(1, 2), steps, text, return_dict=False)[0].transpose(1, 2)


@torch.no_grad()
def test_bidirectional_equals_diffusers(net, batch):
    stock = WanTransformer3DModel(**TINY).eval()
    stock.load_state_dict(net.state_dict())
    ours = net(batch["noisy"], batch["t"], batch["text"], frames=torch.arange(F))
    theirs = stock_velocity(stock, batch["noisy"], batch["t"], batch["text"])
    assert theirs.abs().mean() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert ours.dtype == torch.float32
    late = net(batch["noisy"], batch["t"], batch["text"], frames=torch.arange(F) + 3)
    torch.testing.assert_close(late, ours, atol=1e-5, rtol=1e-5)  # positions are relative


def test_gradients_equal_diffusers(net, batch):
    stock = WanTransformer3DModel(**TINY)
    stock.load_state_dict(net.state_dict())
    net(
        batch["noisy"], batch["t"], batch["text"], frames=torch.arange(F)
    ).square().mean().backward()
    stock_velocity(stock, batch["noisy"], batch["t"], batch["text"]).square().mean().backward()
    theirs = dict(stock.named_parameters())
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(
            parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-4, msg=name
        )
    net.zero_grad(set_to_none=True)


def test_state_dict_keys_equal(net):
    assert list(net.state_dict()) == list(WanTransformer3DModel(**TINY).state_dict())


@torch.no_grad()
def test_folders_go_both_ways(net, batch, tmp_path):
    net.save_pretrained(tmp_path / "ours")
    stock = WanTransformer3DModel.from_pretrained(tmp_path / "ours")
    assert type(AutoModel.from_pretrained(str(tmp_path / "ours"))) is WanTransformer3DModel
    stock.save_pretrained(tmp_path / "theirs")
    again = Wan.from_pretrained(tmp_path / "theirs")
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    call = (batch["noisy"], batch["t"], batch["text"])
    assert torch.equal(net(*call, frames=torch.arange(F)), again(*call, frames=torch.arange(F)))
    saved = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert saved["num_layers"] == again.config.num_layers == 3


@pytest.mark.parametrize("cached", [False, True])
def test_checkpointing_changes_no_gradient(net, batch, cached):
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        net.gradient_checkpointing = checkpointing
        cache = net.new_cache() if cached else None
        call = {"frames": torch.tensor([0, 1]), "cache": cache}
        if cached:
            with torch.no_grad():
                net(
                    batch["clean"][:, :2],
                    batch["t"][:, :2],
                    batch["text"],
                    **call,
                    write_cache=True,
                )
            call["frames"] = torch.tensor([2, 3])
        v = net(batch["noisy"][:, :2], batch["t"][:, :2], batch["text"], **call)
        if cached:  # a write between forward and backward must not reach the recomputation
            with torch.no_grad():
                net(
                    batch["clean"][:, 2:4],
                    batch["t"][:, :2],
                    batch["text"],
                    **call,
                    write_cache=True,
                )
        v.square().mean().backward()
        found = [parameter.grad.clone() for parameter in net.parameters()]
        net.zero_grad(set_to_none=True)
        return found

    try:
        for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
            torch.testing.assert_close(recomputed, plain, atol=1e-7, rtol=1e-6)
    finally:
        net.gradient_checkpointing = False


@torch.no_grad()
def test_token_count_multiple_of_128(net):
    x, t, text = (
        torch.randn(1, 8, C, 8, 8),
        torch.rand(1, 8),
        torch.randn(1, L, 32),
    )  # 8 frames x 16 tokens
    v = net(x, t, text, frames=torch.arange(8), visible=causal_matrix([1] * 8))
    assert v.shape == x.shape and torch.isfinite(v).all()
    first = net(x[:, :5], t[:, :5], text, frames=torch.arange(5), visible=causal_matrix([1] * 5))
    torch.testing.assert_close(v[:, :5], first, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_text_is_read_once_per_rollout_and_never_confused(net, batch):
    cache, other = net.new_cache(), torch.randn(3, L, 32)
    call = {"frames": torch.tensor([0])}
    x, t = batch["noisy"][:, :1], batch["t"][:, :1]
    for text in (batch["text"], batch["text"], other):
        with_cache, without = net(x, t, text, cache=cache, **call), net(x, t, text, **call)
        torch.testing.assert_close(with_cache, without)
    with torch.enable_grad():
        text = batch["text"].clone().requires_grad_()
        net(x, t, text, cache=cache, **call).sum().backward()
        assert text.grad.abs().sum() > 0
        net.zero_grad(set_to_none=True)


def test_rotation_tables():
    stock = WanTransformer3DModel(**TINY).rope
    cos, sin = stock(torch.empty(1, C, F, H, W))
    ours = rope_table(tuple(range(F)), H // 2, W // 2, 24, torch.device("cpu"))
    torch.testing.assert_close(ours[:, 0, :, 0], cos[0, :, 0, 0::2], atol=1e-6, rtol=0)
    torch.testing.assert_close(ours[:, 0, :, 1], sin[0, :, 0, 0::2], atol=1e-6, rtol=0)
    far = 123_456
    rope = rope_table((far,), 1, 1, 24, torch.device("cpu"))
    exact = torch.tensor([far], dtype=torch.float64).cos().float()
    assert torch.equal(rope[0, 0, :1, 0], exact)  # the fastest pair turns one radian a frame


@torch.no_grad()
def test_bfloat16_weights_leave_positions_alone(batch):
    torch.manual_seed(0)
    rounded = Wan(**TINY).bfloat16()
    assert not list(rounded.buffers())
    far = torch.arange(F) + 1000
    rope = rope_table(tuple(far.tolist()), H // 2, W // 2, 24, torch.device("cpu"))
    assert rope.dtype == torch.float32
    v = rounded(batch["noisy"], batch["t"], batch["text"], frames=far)
    assert v.dtype == torch.float32 and torch.isfinite(v).all()
    shifted = rounded(batch["noisy"], batch["t"], batch["text"], frames=torch.arange(F))
    assert (
        v - shifted
    ).abs().max() < 0.05 * v.abs().max()  # bf16 tables would have aliased frames past 256


def test_autocast_trains(batch):
    torch.manual_seed(0)
    net = shake(Wan(**TINY))
    exact = net(batch["noisy"], batch["t"], batch["text"], frames=torch.arange(F))
    with torch.autocast("cpu", torch.bfloat16):
        v = net(
            batch["noisy"],
            batch["t"],
            batch["text"],
            frames=torch.arange(F),
            visible=causal_matrix([6]),
        )
    assert v.dtype == torch.float32
    assert (v - exact).norm() < 0.05 * exact.norm()
    v.square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_tables_made_in_inference_mode_can_train(net, batch):
    call = {"frames": torch.arange(F) + 50, "visible": causal_matrix([2, 4])}
    with torch.inference_mode():
        net(batch["noisy"], batch["t"], batch["text"], **call)
    net(batch["noisy"], batch["t"], batch["text"], **call).sum().backward()
    net.zero_grad(set_to_none=True)


def test_dense_mask():
    visible = torch.tensor([[1, 0], [1, 1]], dtype=torch.bool)
    mask = attention_mask(visible, 2, 1, torch.device("cpu"), torch.float32)
    hidden = -torch.inf
    drawn = [[0, 0, 0, 0, hidden, hidden]] * 2 + [[0] * 6] * 2
    assert mask.tolist() == drawn
    assert attention_mask(visible.clone(), 2, 1, torch.device("cpu"), torch.float32) is mask
    assert (
        attention_mask(torch.ones(3, 3, dtype=torch.bool), 2, 1, torch.device("cpu"), torch.float32)
        is None
    )
    with pytest.raises(ValueError, match="at least itself"):
        attention_mask(
            torch.zeros(2, 2, dtype=torch.bool), 2, 0, torch.device("cpu"), torch.float32
        )
    with pytest.raises(ValueError, match="square bool"):
        attention_mask(torch.ones(2, 2), 2, 0, torch.device("cpu"), torch.float32)


def test_attend_is_softmax():
    q, k, v = torch.randn(3, 2, 5, 2, 8).unbind(0)
    mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5 + mask
    torch.testing.assert_close(
        attend(q, k, v, mask), torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)
    )


def test_mistakes_are_refused(net, batch):
    with pytest.raises(ValueError, match="frames"):
        net(batch["noisy"], batch["t"], batch["text"], frames=torch.arange(F - 1))
    with pytest.raises(ValueError, match="visible"):
        net(
            batch["noisy"],
            batch["t"],
            batch["text"],
            frames=torch.arange(F),
            visible=causal_matrix([3]),
        )
    with pytest.raises(ValueError, match="patches"):
        net(batch["noisy"][..., :5], batch["t"], batch["text"], frames=torch.arange(F))
    with pytest.raises(ValueError, match="merged"):
        Wan(**TINY, patch_size=(2, 2, 2))
    with pytest.raises(ValueError, match="image-to-video"):
        Wan(**TINY, added_kv_proj_dim=8)


def test_the_published_size_has_the_published_parameters():
    with torch.device("meta"):
        big = Wan(
            **TINY
            | {
                "num_attention_heads": 12,
                "attention_head_dim": 128,
                "ffn_dim": 8960,
                "text_dim": 4096,
                "num_layers": 30,
            }
        )
    assert 1.4e9 < sum(parameter.numel() for parameter in big.parameters()) < 1.45e9


def test_rms_norm_equals_torch():
    norm = torch.nn.RMSNorm(12, eps=1e-6)
    x = torch.randn(2, 5, 12, requires_grad=True)
    with torch.no_grad():
        norm.weight.normal_()
    grad = torch.randn_like(x)
    expected = torch.autograd.grad(norm(x), (x, norm.weight), grad)
    ours = torch.autograd.grad(rms_norm(norm, x), (x, norm.weight), grad)
    torch.testing.assert_close(rms_norm(norm, x), norm(x))
    torch.testing.assert_close(ours, expected)
