"""TF-dCM, TF-sCM and TF-MeanFlow against their equations, by loops over clips and blocks.

The parallel form shows a network all blocks of a clip at once, beside the clean clip; here each
block of each clip is asked alone, given the clean frames before it, in the call or in a KV cache.
"""

import pytest
import torch
from minimal import (
    PARTITIONS,
    SHAPE,
    SIZES,
    assert_same_gradients,
    batch,
    beside_clean,
    blocks_of,
    network,
    stage,
    warped,
)

from lightning_modules.tf_dcm import TFdCM
from lightning_modules.tf_mean_flow import TFMeanFlow
from lightning_modules.tf_scm import TFsCM

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.filterwarnings("ignore:.*self.log.*trainer. reference"),
]
H, GUIDANCE = 0.02, 2.0
TANGENT = {
    "guidance": GUIDANCE, "tangent": "upwind", "tangent_step": H, "time_mean": -0.8,
    "time_std": 1.6,
}  # fmt: skip


@torch.no_grad()
def after_clean(net, x, t, text, clean, sizes, **second) -> torch.Tensor:
    """Teacher forcing of one clip by a KV cache to which clean blocks are written."""
    cache, parts = net.new_cache(), []
    for block in blocks_of(sizes):
        frames, until = torch.arange(block.start, block.stop), {}
        if second:
            until = {"until": second["until"][block][None]}
        how = {"frames": frames, "cache": cache}
        parts.append(net(x[block][None], t[block][None], text[None], **how, **until)[0])
        zero = torch.zeros(1, len(frames))
        until = {"until": zero} if second else {}
        net(clean[block][None], zero, text[None], **how, **until, write_cache=True)
    return torch.cat(parts)


def beside(net, x, t, text, clean, sizes, **second) -> torch.Tensor:
    """`beside_clean`, of a network of two times too: its second one is zero where it is clean."""
    if not second:
        return beside_clean(net, x, t, text, clean, sizes)

    def net_until(*args, frames, **how):
        until = torch.zeros(1, len(frames))
        block = next(block for block in blocks_of(sizes) if block.stop == len(frames))
        until[:, block] = second["until"][block]
        return net(*args, frames=frames, until=until, **how)

    return beside_clean(net_until, x, t, text, clean, sizes)


class Clip:
    """One clip of a batch, asked block by block in the way `v`."""

    def __init__(self, module, data, row, sizes, v) -> None:
        self.module, self.sizes, self.v = module, sizes, v
        self.x0, self.text = data["latents"][row], data["text"][row]
        self.random, self.row = module.randomness(data), row
        self.eps = self.random.normal("noise", SHAPE)[row]

    def student(self, x, t, **second):
        level = torch.full((len(x),), t)
        second = {name: torch.full((len(x),), value) for name, value in second.items()}
        return self.v(self.module.student, x, level, self.text, self.x0, self.sizes, **second)

    @torch.no_grad()
    def teacher(self, x, t):
        level = torch.full((len(x),), t)
        with_prompt, without = (
            self.v(self.module.teacher, x, level, text, self.x0, self.sizes)
            for text in (self.text, self.module.negative)
        )
        return without + GUIDANCE * (with_prompt - without)

    def noised(self, t):
        return (1 - t) * self.x0 + t * self.eps


def discrete(clip) -> torch.Tensor:
    """Eq. 10: one Euler step of the teacher; the target is the student itself."""
    u = clip.random.uniform("time", (1,))[clip.row, 0].item() * (1 - 1 / 4)
    t, t_next = warped(1 - u, 3.0), warped(1 - u - 1 / 4, 3.0)
    x = clip.noised(t)
    with torch.no_grad():
        x_next = x + (t_next - t) * clip.teacher(x, t)
        target = x_next - t_next * clip.student(x_next, t_next)
    return (x - t * clip.student(x, t) - target).square().mean()


def continuous(clip) -> torch.Tensor:
    """Eq. 15-19, with the backward difference."""
    logit = -0.8 + 1.6 * clip.random.normal("time", (1,))[clip.row, 0]
    t = torch.sigmoid(logit).item()
    x, back = clip.noised(t), min(H, t)
    with torch.no_grad():
        v, now = clip.teacher(x, t), clip.student(x, t)
        change = (now - clip.student(x - back * v, t - back)) / back
        h = v - now - t * change
        target = now + h / (h.square().mean().sqrt() + 0.1)
    return (clip.student(x, t) - target).square().mean()


def mean_flow(clip) -> torch.Tensor:
    """Eq. 3-4, with the backward difference, which may look behind r."""
    spans = clip.module.draw_spans(clip.random, clip.module.r_equals_t, clip.module.r_is_zero)
    t, r = (time[clip.row, 0].item() for time in spans)
    x, back = clip.noised(t), min(H, t)
    with torch.no_grad():
        v, now = clip.teacher(x, t), clip.student(x, t, until=r)
        behind = clip.student(x - back * v, t - back, until=min(r, t - back))
        target = v - (t - r) * (now - behind) / back
    m = (clip.student(x, t, until=r) - target).square().mean()
    return m / (m.detach() + 1e-3)


KINDS = {
    TFdCM: (discrete, {"guidance": GUIDANCE, "intervals": 4, "time_shift": 3.0}),
    TFsCM: (continuous, TANGENT | {"tangent_warmup_steps": 0, "tangent_floor": 0.1}),
    TFMeanFlow: (
        mean_flow,
        TANGENT | {"weight_floor": 1e-3, "r_equals_t": 0.25, "r_is_zero": 0.25},
    ),
}


@pytest.mark.parametrize("blocks", PARTITIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_loss_is_that_of_a_loop_over_clips_and_blocks(kind, blocks):
    """With clean frames in the call also its gradient: a cache is written without any."""
    equation, own = KINDS[kind]
    student, data = network(1), batch(4)
    if kind.two_times:
        student = student.with_second_time()
        torch.nn.init.normal_(student.span_embedder.linear_2.weight, std=0.2)
    module = stage(kind, blocks, student=student, teacher=network(2), **own)
    loss = module.training_step(data, 0)
    loss.backward()
    expected = {
        v: sum(equation(Clip(module, data, row, SIZES[str(blocks)], v)) for row in range(4)) / 4
        for v in (beside, after_clean)
    }
    for wanted in expected.values():
        torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)
    assert_same_gradients(student, expected[beside])
