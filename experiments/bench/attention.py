"""Teacher forcing's self-attention of one layer, forward and backward, by each kernel there is.

By such times ``launch.attention: auto`` was decided on an H100 (`networks/wan/attention.py`); on
another card the rows say whether to set it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from experiments.bench.clock import Protocol, measure
from experiments.bench.count import Work
from experiments.bench.device import Peak
from experiments.bench.random_models import Subject
from experiments.bench.row import Row, Task
from lightning_modules.diffusion.visibility import teacher_forcing_mask
from lightning_modules.networks.wan import attention
from lightning_modules.networks.wan.masks import DENSE_LIMIT

PASSES = 3.5  # in units of a forward: a backward computes q k once more, and four products
TENSORS = 12  # forward q, k, v, out; backward these, the gradient of out, and those of q, k, v


def bench(subject: Subject, protocol: Protocol) -> Iterator[Task]:
    """One clip, with the scale's blocks."""
    for kernel in _usable(subject):
        yield Task(f"attention/{kernel}", partial(_row, subject, protocol, kernel))


def _usable(subject: Subject) -> list[str]:
    tokens = 2 * subject.shape[0] * subject.tokens
    found = ["merged"] if subject.half or subject.device.type == "cpu" else []
    if tokens**2 * subject.dtype.itemsize <= DENSE_LIMIT:
        found.append("dense")
    return [*found, "flex"] if subject.device.type == "cuda" else found


def _row(subject: Subject, protocol: Protocol, kernel: str, peak: Peak) -> list[Row]:
    network = subject.tree["network"]
    visible, heads = teacher_forcing_mask(subject.blocks), network["num_attention_heads"]
    tokens, size = 2 * subject.shape[0] * subject.tokens, network["attention_head_dim"]
    shape = (1, tokens, heads, size)
    parts = [
        torch.randn(shape, device=subject.device, dtype=subject.dtype, requires_grad=True)
        for _ in range(3)
    ]
    weight = torch.randn(1, tokens, heads * size, device=subject.device, dtype=subject.dtype)
    before = attention.chosen()
    attention.use(kernel, subject.device)
    try:
        mask = attention.attention_mask(visible, subject.tokens, 0, subject.device, subject.dtype)

        def action() -> None:
            torch.autograd.grad(attention.attend(*parts, mask), parts, weight)

        timing, _ = measure(action, subject.device, protocol)
    finally:
        attention.use(before, subject.device)
    forward = 4.0 * int(visible.sum()) * subject.tokens**2 * heads * size
    work = Work(PASSES * forward, TENSORS * tokens * heads * size * subject.dtype.itemsize)
    more = {"kernel": kernel, "tokens": tokens}
    return [Row(f"attention/{kernel}", timing, peak.least_seconds(work), work, more=more)]
