"""Tangents of velocities: three ways to take them, of networks and of the RMS norm."""

import pytest
import torch
from minimal import PARTITIONS, SHAPE, batch, draw, network
from torch import nn
from torch.autograd import forward_ad

from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.tangents import TANGENTS, central, exact, upwind
from lightning_modules.diffusion.visibility import partition
from lightning_modules.networks.wan.rms_norm import rms_norm


def velocity(blocks="framewise"):
    data, net = batch(2), network(1)
    sizes = partition(blocks, SHAPE[0])

    def v(x, t):
        return forcing.teacher_forcing(net, x, t, data["text"], sizes, clean=data["latents"])

    return v, draw(3, 2, *SHAPE), torch.tensor([[0.3], [0.7]]).expand(2, SHAPE[0])


@pytest.mark.parametrize("blocks", PARTITIONS, ids=str)
def test_differences_are_near_the_exact_tangent(blocks):
    """Features of frequency 1000 turn by 0.1 radians in a step of 1e-4."""
    v, x, t = velocity(blocks)
    w = draw(4, 2, *SHAPE)
    with torch.no_grad():
        now = v(x, t)
        found = exact(v, x, t, w, now, 0.0)
        for h, way, least in ((1e-4, central, 0.01), (1e-4, upwind, 0.1)):
            error = (way(v, x, t, w, now, h) - found).norm() / found.norm()
            assert error < least, (way, error)


def test_it_is_the_tangent_of_both_halves_packed_with_a_zero_one_of_the_clean_half():
    """The clean context is a constant of v: the packed input's tangent there is zero (Eq. 17)."""
    v, x, t = velocity()
    data, net, w = batch(2), network(1), draw(4, 2, *SHAPE)
    frames = SHAPE[0]
    with torch.no_grad():
        found = exact(v, x, t, w, v(x, t), 0.0)
        with forward_ad.dual_level():
            packed = forward_ad.make_dual(
                torch.cat([data["latents"], x], 1), torch.cat([torch.zeros_like(x), w], 1)
            )
            times = forward_ad.make_dual(
                torch.cat([torch.zeros_like(t), t], 1),
                torch.cat([torch.zeros_like(t), torch.ones_like(t)], 1),
            )
            visible = forcing.visibility.teacher_forcing_mask([1] * frames)
            answer = net(packed, times, data["text"], frames=torch.arange(frames).repeat(2),
                         visible=visible)  # fmt: skip
            tangent = forward_ad.unpack_dual(answer).tangent
    assert torch.equal(tangent[:, frames:], found)
    assert not tangent[:, :frames].any()


@pytest.mark.parametrize("name", TANGENTS)
def test_of_a_velocity_that_is_known(name):
    """v = a x + b t has the tangent a w + b everywhere, also at both ends of [0, 1]."""
    x, w = draw(0, 3, *SHAPE), draw(1, 3, *SHAPE)
    for t in (0.0, 0.01, 0.5, 1.0):
        if name == "upwind" and t == 0:
            continue
        level = torch.full((3, SHAPE[0]), t)
        v = lambda x, t: 0.7 * x - 2.0 * t[:, :, None, None, None]  # noqa: E731
        found = TANGENTS[name](v, x, level, w, v(x, level), 0.02)
        torch.testing.assert_close(found, 0.7 * w - 2.0, atol=2e-4, rtol=2e-4)


def test_at_time_zero_nothing_lies_behind():
    x, level = draw(0, 3, *SHAPE), torch.zeros(3, SHAPE[0])
    assert not upwind(lambda x, t: x, x, level, x, x, 0.02).any()


def test_the_tangent_of_the_rms_norm_is_torchs():
    norm, x = nn.RMSNorm(6, eps=1e-6), draw(0, 4, 6)
    nn.init.normal_(norm.weight)
    dx, dw = draw(1, 4, 6), draw(2, 6)

    def of(function, x, weight):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(function(x, weight)).tangent

    for tangents in ((dx, None), (None, dw), (dx, dw)):
        found = []
        for function in (
            lambda x, w: torch.rms_norm(x, (6,), w, 1e-6),
            lambda x, w: rms_norm(type("N", (), {"weight": w, "eps": 1e-6})(), x),
        ):
            with forward_ad.dual_level():
                duals = [
                    value if d is None else forward_ad.make_dual(value, d)
                    for value, d in zip((x, norm.weight.detach()), tangents, strict=True)
                ]
                found.append(forward_ad.unpack_dual(function(*duals)).tangent)
        torch.testing.assert_close(*found)


def test_under_autocast_the_exact_tangent_is_that_of_float32():
    v, x, t = velocity()
    w = draw(4, 2, *SHAPE)
    with torch.no_grad():
        whole = exact(v, x, t, w, v(x, t), 0.0)
        with torch.autocast("cpu", torch.bfloat16):
            half = exact(v, x, t, w, v(x, t), 0.0)
    assert (half - whole).norm() < 0.03 * whole.norm()
