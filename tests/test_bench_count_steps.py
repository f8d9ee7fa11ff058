"""Operations of training steps, backward passes and recomputation, against torch's counter."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from test_bench_count import FRAMES, NUMBERS, SIZE, TEXT, TOKENS, counted, inputs, operations

from experiments.bench import count
from experiments.bench.count import passes
from experiments.bench.random_models import Subject
from lightning_modules.diffusion import forcing
from lightning_modules.networks import Wan
from lightning_modules.networks.tally import Call, calls_of

SUBJECT = Subject(
    {"clip_shape": (FRAMES, 4, 4, 4), "bench": {"text_tokens": TEXT}, "precision": "32-true"}, None
)


@pytest.mark.parametrize("checkpointing", [False, True, "full"])
def test_a_step_is_three_passes_and_what_is_recomputed(checkpointing):
    """Up to the gradients of inputs, which nobody asks for: a few per cent at this size."""
    net, (x, t, text) = Wan(**NUMBERS), inputs(1)
    net.gradient_checkpointing = checkpointing
    found = counted(lambda: net(x, t, text, frames=torch.arange(FRAMES)).sum().backward())
    call = Call(FRAMES, FRAMES**2, backward=2)
    assert passes(call) == 3
    attention = 4 * SIZE.layers * SIZE.width * (FRAMES * TOKENS) ** 2
    assert count.kept(SIZE, call, TOKENS).operations == attention
    again = {False: 0, True: operations(call) - attention, "full": operations(call)}[checkpointing]
    assert SUBJECT.recomputed(call, SIZE, 1, checkpointing).operations == again
    assert 0.95 < found / (3 * operations(call) + again) <= 1


@pytest.mark.parametrize("checkpointing", [True, "full"])
def test_what_is_recomputed_of_teacher_forcing(checkpointing):
    """By a dense kernel, as above; in the last layer of the noisy half alone. What is outside the
    layers is counted as if it were recomputed: a share that is large only at this size.
    """
    net, (x, t, text) = Wan(**NUMBERS), inputs(1)
    found = {}
    for how in (False, checkpointing):
        net.gradient_checkpointing = how
        step = partial(forcing.teacher_forcing, net, x, t, text, [1] * FRAMES, clean=x)
        found[how] = counted(lambda step=step: step().sum().backward())
    (call,) = calls_of(lambda n: forcing.teacher_forcing(n, x, t, text, [1] * FRAMES, clean=x))
    (queries, _), keys = call.last, call.frames
    dense = replace(call, seen=keys**2, last=(queries, queries * keys), backward=2)
    again = SUBJECT.recomputed(dense, SIZE, 1, checkpointing).operations
    assert 0.8 < (found[checkpointing] - found[False]) / again <= 1


def test_a_frozen_network_takes_the_gradient_of_its_input_alone():
    """One pass more, not two: no gradients of weights; attention's, which has none, takes two."""
    net, (x, t, text) = Wan(**NUMBERS).requires_grad_(False), inputs(1)
    x.requires_grad_(True)
    found = counted(lambda: net(x, t, text, frames=torch.arange(FRAMES)).sum().backward())
    call = Call(FRAMES, FRAMES**2, backward=1)
    assert passes(call) == 2
    assert 0.95 < found / operations(call) / 2 < 1.05
