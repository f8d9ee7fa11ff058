"""Activation checkpointing: the same bits, and self-attention is computed once."""

from collections import Counter

import pytest
import torch
from test_memory import alive, load_of, one, small
from tiny_rollouts import make_net, setting
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.launch.hardware import launch_of
from experiments.launch.memory.count import FULL, HALF
from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.rollout import FewSteps, Past, few_step_times, rollout
from lightning_modules.networks.wan import attention

SIZES = (1, 1, 2)
HOW = (False, True, "full")


class Kernels(TorchDispatchMode):
    """Counts the calls of attention kernels."""

    @classmethod
    def ignore_compile_internals(cls):
        return True

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if "attention" in name and "backward" not in name:
            self.calls[func] += 1
        return func(*args, **(kwargs or {}))


def trained(how, loss, compiled=False, device="cpu"):
    """Gradients of all parameters, calls of attention kernels, and layers."""
    net = make_net().train().requires_grad_().to(device)
    net.gradient_checkpointing = how
    if compiled:
        net.compile_blocks()
    with Kernels() as kernels:
        loss(net).backward()
    return [each.grad for each in net.parameters()], kernels.calls.total(), len(net.blocks)


def short_prompt():
    """Fewer tokens than a frame has, as at every published size."""
    random, text, noise = setting(frames=4)
    return random, text[:, :2], noise


def teacher_forcing(net):
    random, text, noise = short_prompt()
    clean, t = random.normal("clean", noise.shape[1:]), random.uniform("t", (4,))
    return forcing.teacher_forcing(net, noise, t, text, SIZES, clean=clean).square().mean()


def self_rollout(net):
    random, text, noise = short_prompt()
    steps = FewSteps(few_step_times(SIZES, 1, 1, 5.0), lambda _: noise)
    return rollout(Past(net, text), noise, SIZES, steps).square().mean()


@pytest.mark.parametrize("kernel", ["dense", "merged"])
@pytest.mark.parametrize("loss", [teacher_forcing, self_rollout])
def test_gradients_have_the_same_bits_and_self_attention_runs_once(loss, kernel, monkeypatch):
    monkeypatch.setattr(attention, "_forced", kernel)
    (plain, calls, layers), kept, full = (trained(how, loss) for how in HOW)
    for other, *_ in (kept, full):
        assert all(map(torch.equal, plain, other))
    once = 1 if loss is teacher_forcing else len(SIZES)  # a layer, with gradient
    assert full[1] - calls == 2 * once * layers, "self-attention and cross-attention again"
    assert kept[1] - calls == once * layers, "cross-attention again"


def test_a_prompt_longer_than_a_frame_is_kept_in_its_order():
    def loss(net):
        _, text, noise = setting(frames=4)
        steps = FewSteps(few_step_times(SIZES, 1, 1, 5.0), lambda _: noise)
        return rollout(Past(net, text.repeat(1, 2, 1)), noise, SIZES, steps).square().mean()

    (plain, calls, _), kept = (trained(how, loss) for how in (False, True))
    assert all(map(torch.equal, plain, kept[0]))
    assert kept[1] < calls + len(SIZES), "cross-attention runs once, but for a longer block"


@pytest.mark.parametrize("how", HOW)
def test_a_recipe_chooses(how):
    assert launch_of({"launch": {"gradient_checkpointing": how}}).gradient_checkpointing == how
    with pytest.raises(ValueError, match="true or false, or one of full"):
        launch_of({"launch": {"gradient_checkpointing": f"{how}?"}})


@pytest.mark.usefixtures("nothing_left_of_other_tests")
@pytest.mark.parametrize("numbers", [{}, {"cameras": True}], ids=["plain", "cameras"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_attentions_output_is_kept_unless_checkpointing_is_full(half, numbers):
    net, held, frames = small(**numbers), {}, 6
    x, t, text = torch.randn(2, frames, 16, 16, 16), torch.rand(2, frames), torch.randn(2, 6, 32)
    seen = {"cameras": torch.eye(4).expand(2, frames, 3, 4, 4)} if numbers else {}
    for checkpointing in ("full", True, "full"):  # the first makes tables that are shared
        net.gradient_checkpointing = checkpointing
        before = alive()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            v = net(x, t, text, frames=torch.arange(frames), **seen)
        held[checkpointing] = alive() - before
        v.sum().backward()
        net.zero_grad()
        del v
    load = load_of(net, frames, value=HALF if half else FULL)
    assert held[True] - held["full"] == load.layers * load.attended(frames) > 0
    assert load.saved([one(frames)], True) - load.saved([one(frames)], "full") == (
        load.layers * load.attended(frames)
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
@pytest.mark.parametrize("context", ["clean", "own"])
def test_on_a_gpu(context):
    def loss(net):
        text, noise = (each.cuda() for each in short_prompt()[1:])
        with torch.autocast("cuda", torch.bfloat16):
            if context == "own":
                steps = FewSteps(few_step_times(SIZES, 1, 1, 5.0), lambda _: noise)
                return rollout(Past(net, text), noise, SIZES, steps).square().mean()
            t = torch.full(noise.shape[:2], 0.5, device="cuda")
            return forcing.teacher_forcing(net, noise, t, text, SIZES, clean=noise).square().mean()

    (full, calls, layers), kept = (trained(how, loss, True, "cuda") for how in ("full", True))
    once = layers * (len(SIZES) if context == "own" else 1)
    assert calls - kept[1] == once, "self-attention is not computed again"
    for expected, found in zip(full, kept[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4)
