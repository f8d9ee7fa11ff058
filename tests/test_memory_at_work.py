"""Estimated peak of temporaries of a pass, against the measured peak."""

import weakref

import pytest
import torch
from test_memory import load_of, one, small
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from experiments.launch.memory.count import FULL, HALF


class Peak(TorchDispatchMode):
    """Bytes of the tensors that were made under it and live at one time, at most."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for part in tree_iter(made):
            if isinstance(part, torch.Tensor):
                self._watch(part.untyped_storage())
        return made

    def _watch(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key, size):
        self._known.remove(key)
        self.live -= size


def peak_of(net, frames, half, trained):
    inputs = torch.randn(2, frames, 16, 16, 16), torch.rand(2, frames), torch.randn(2, 6, 32)
    with Peak() as peak, torch.set_grad_enabled(trained):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = net(*inputs, frames=torch.arange(frames))
        if trained:
            out.sum().backward()
    return peak.peak


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("head_dim", "ffn"), [(24, 64), (24, 384), (48, 256)])
def test_a_pass_holds_what_is_counted(half, head_dim, ffn):
    """By the difference of two lengths; a step with recomputation holds no more than is counted."""
    net = small(head_dim=head_dim, ffn=ffn)
    net.gradient_checkpointing = True
    load = load_of(net, 8, value=HALF if half else FULL)
    found, step = (
        peak_of(net, 8, half, trained) - peak_of(net, 4, half, trained) for trained in (False, True)
    )
    assert load.working(4) == pytest.approx(found, rel=0.15)
    saved = load.saved([one(8)], True) - load.saved([one(4)], True)
    assert 0.6 * (saved + load.working(4)) < step < saved + load.working(4)
