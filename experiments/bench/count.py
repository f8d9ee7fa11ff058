"""Operations and bytes of a pass through a network, from its shapes alone.

Operations are two per multiply-add, of matrix products only (norms, activations, rotations and
softmax are left out, as is usual). A pass over ``N`` frames of ``S`` tokens, ``Q = N S`` queries,
in a block of width ``D`` with ``F`` hidden units and a prompt of ``T`` tokens::

    queries, keys, values, output    8 Q D^2
    attention                        4 D P        P: pairs (query token, key token) that see each
    text: queries and output         4 Q D^2         other, cached keys included
    text: attention                  4 D Q T
    text: keys and values            4 T D^2      not where a cache remembers them
    feed-forward                     4 Q D F

and once, beside the blocks: patches in and out ``16 C Q D``, per frame the time embedding
``2 (f D + 7 D^2)``, the text embedding ``2 T (d D + D^2)``. ``P`` counts what is *seen*, not what
a kernel computes: a dense mask computes more and shows it as a lower share of the roofline.

A backward pass is two forwards; recomputing a checkpointed block is one more, which the hardware
does and the model does not need.

Bytes are the least a device must move through its memory: the weights once, the cached keys and
values once, and per block the residual stream in and out and the prompt's keys and values. Other
activations may stay on chip, so a time of bytes / bandwidth cannot be beaten, only approached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from experiments.bench.sizes import NetworkSize

CHECKPOINTED = 4
"""Forwards' worth of operations of a step with activation checkpointing: 1 + 1 + 2."""
PLAIN = 3
"""Of a step without it, and of what the model itself needs, whatever the hardware repeats."""


@dataclass(frozen=True)
class Work:
    """Operations and bytes, summed over as many passes as it took."""

    operations: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:
        return Work(self.operations * times, self.bytes * times)


@dataclass(frozen=True)
class Pass:
    """One forward of a batch.

    Args:
        frames: queried at once.
        seen: pairs (query frame, key frame) that see each other, cached key frames included.
        cached: frames whose keys and values come from a cache.
        reads_prompt: whether the prompt's keys and values are computed in this pass.
        batch: clips.
    """

    frames: int
    seen: int
    cached: int = 0
    reads_prompt: bool = True
    batch: int = 1


def work(size: NetworkSize, step: Pass, tokens: int, text: int, width_bytes: int) -> Work:
    """Operations and bytes of one forward.

    Args:
        size: of the network.
        step: the forward.
        tokens: per frame.
        text: tokens of a prompt.
        width_bytes: bytes of a number, as computed with.
    """
    d, queries = size.width, step.frames * tokens
    prompt = text if step.reads_prompt else 0
    block = (
        8 * queries * d * d
        + 4 * d * step.seen * tokens * tokens
        + 4 * queries * d * d
        + 4 * d * queries * text
        + 4 * prompt * d * d
        + 4 * queries * d * size.ffn
    )
    beside = (
        16 * size.channels * queries * d
        + 2 * step.frames * (size.freq_dim * d + 7 * d * d)
        + 2 * prompt * (size.text_dim * d + d * d)
    )
    moved = size.layers * d * (2 * step.cached * tokens + 2 * queries + 2 * text)
    return Work(
        step.batch * (size.layers * block + beside),
        width_bytes * (size.parameters + step.batch * moved),
    )


def teacher_forcing(sizes: Sequence[int], batch: int = 1) -> Pass:
    """Clean and noisy frames side by side: each sees the clean blocks before it and its own."""
    frames, before, seen = sum(sizes), 0, 0
    for block in sizes:
        seen += 2 * block * (before + block)
        before += block
    return Pass(2 * frames, seen, batch=batch)


def diffusion_forcing(sizes: Sequence[int], batch: int = 1) -> Pass:
    """Noisy frames alone, each beside the blocks before it."""
    seen, before = 0, 0
    for block in sizes:
        before += block
        seen += block * before
    return Pass(before, seen, batch=batch)


def bidirectional(frames: int, batch: int = 1) -> Pass:
    """All frames see all frames."""
    return Pass(frames, frames * frames, batch=batch)


def rollout(
    sizes: Sequence[int],
    steps: Sequence[int],
    batch: int = 1,
    commits: int | None = None,
    fused: bool = False,
) -> list[Pass]:
    """The passes of a cached block-by-block generation.

    Args:
        sizes: frames per block.
        steps: denoising passes of each block.
        batch: clips; with guidance twice as many.
        commits: blocks that are committed to the cache; None: all but the last, which nobody reads.
        fused: a commit is made in one pass with the first of the next block.
    """
    commits = len(sizes) - 1 if commits is None else commits
    passes, before = [], 0
    for index, (block, count) in enumerate(zip(sizes, steps, strict=True)):
        own = Pass(block, block * (before + block), before, False, batch)
        denoising = [own] * count
        if fused and 0 < index <= commits:
            denoising[0] = _together(passes.pop(), own)
        passes += denoising + [own] * (index < commits)
        before += block
    return [replace(passes[0], reads_prompt=True), *passes[1:]]


def _together(commit: Pass, following: Pass) -> Pass:
    """What the second finds in the cache of the first is now of the same pass."""
    frames, seen = commit.frames + following.frames, commit.seen + following.seen
    return replace(commit, frames=frames, seen=seen)
