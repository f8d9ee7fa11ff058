"""Compiled layers train and generate as plain ones do, by the backend that is asked for."""

from functools import partial

import pytest
import torch
from test_checkpointing import Kernels
from tiny_rollouts import few_steps, make_net, setting

from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.fast_past import FastPast
from lightning_modules.diffusion.rollout import rollout
from lightning_modules.networks.wan import block
from lightning_modules.networks.wan.compiled import compiled as compiled_function


@pytest.fixture
def backends(monkeypatch):
    """With which parts are compiled, and nothing that another test has compiled."""
    found, plain = [], torch.compile

    def compile(*what, backend="inductor", **how):
        found.append(backend)
        return plain(*what, backend=backend, **how)

    block._compiled_parts.cache_clear()
    monkeypatch.setattr(torch, "compile", compile)
    yield found
    block._compiled_parts.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize(("half", "backend"), [(False, "aot_eager"), (True, "inductor")])
def test_compiled_blocks_train_the_same(half, backend, backends, monkeypatch):
    """Teacher forcing's gradients, recomputed layer by layer, as at Wan's scale."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    random, text, noise = setting(frames=2)
    clean, t = random.normal("clean", noise.shape[1:]), random.uniform("t", (2,))
    found = []
    for compiled in (False, True):
        net = make_net().train().requires_grad_()
        net.gradient_checkpointing = True
        if compiled:
            net.compile_blocks()
        with Kernels() as kernels:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                v = forcing.teacher_forcing(net, noise, t, text[:, :2], (1, 1), clean=clean)
            v.square().mean().backward()
        assert kernels.calls.total() == 3 * len(net.blocks), "self-attention is kept"
        found.append([v.detach(), *(each.grad for each in net.parameters())])
    assert backends == [backend] * len(block._parts())
    scale = 0.1 if half else 1e-3
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= scale * one.norm() + 1e-6


@pytest.mark.slow
def test_forty_lengths_are_compiled_with_and_without_predicted_frames(monkeypatch):
    """A session whose prompt changes shows a past of any length again, and asks for none of it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    function = compiled_function(lambda x, first: 2 * x[first:])
    for frames in range(1, 41):
        assert [len(function(torch.ones(frames), first)) for first in (0, frames)] == [frames, 0]


@pytest.mark.slow
@torch.no_grad()
def test_compiled_blocks_compute_the_same(backends):
    net, sizes = make_net(), (1, 1)  # one shape: compiling is what takes the time
    random, text, noise = setting(frames=2)
    how = {"frames": 2}
    expected = rollout(FastPast(net, text, **how), noise, sizes, few_steps(random, sizes))
    net.accelerated(compiled=True, graphs=False)
    made = rollout(FastPast(net, text, **how), noise, sizes, few_steps(random, sizes))
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
