"""Operations and bytes of a pass through a network, from its shapes alone.

Operations are two per multiply-add, of matrix products only (norms, activations, rotations and
softmax are left out, as is usual). A pass over ``N`` frames of ``S`` tokens, ``K = N S``, in a
block of width ``D`` with ``F`` hidden units, ``Q = K`` queries and a prompt of ``T`` tokens::

    keys, values                     4 K D^2
    queries, output                  4 Q D^2
    attention                        4 D P        P: pairs (query token, key token) that see each
    text: queries and output         4 Q D^2         other, cached keys included
    text: attention                  4 D Q T
    text: keys and values            4 T D^2      not where a cache remembers them
    feed-forward                     4 Q D F

and once, outside the blocks: patches in ``8 C K D`` and out ``8 C Q D``, per frame the time
embedding ``2 (f D + 7 D^2)``, the text embedding ``2 T (d D + D^2)``. In the last block and behind
it ``Q`` are the tokens of the predicted frames alone, and ``P`` their pairs: none in a call that
only writes the cache. ``P`` counts *visible* pairs, not what a kernel computes: a dense mask
computes more and shows it as a lower share of the roofline.

With cameras attention has twice the heads, and another output projection: ``2 Q D^2`` and
``4 D P`` more.

A backward pass counts as two forwards. Recomputing a checkpointed block adds one, self-attention's
kernel aside where its output is kept, which counts as hardware work but not as model work.

Bytes are the least a device must move through its memory: the weights that it needs once, the
cached keys and values once, and per block the residual stream in and out and the prompt's keys and
values. Other activations may stay on chip, so a time of bytes / bandwidth cannot be beaten, only
approached.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.bench.sizes import NetworkSize
from lightning_modules.networks.tally import Call

_ADAMW_BYTES = 28  # read and write weight and two moments, read the gradient: seven float32 values


@dataclass(frozen=True)
class Work:
    """Operations and bytes, summed over passes."""

    operations: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:
        return Work(self.operations * times, self.bytes * times)


def work(size: NetworkSize, call: Call, tokens: int, text: int, width_bytes: int) -> Work:
    """Operations and bytes of one forward.

    Args:
        size: of the network.
        call: the forward.
        tokens: per frame.
        text: tokens of a prompt.
        width_bytes: bytes of a value in the compute dtype.
    """
    d, own = size.width, call.frames * tokens
    frames, seen = call.last or (call.frames, call.seen)  # of the last block
    asked, prompt = frames * tokens, text if call.reads_prompt else 0
    blocks = (size.layers - 1) * _block(size, own, own, call.seen * tokens**2, text)
    blocks += _block(size, own, asked, seen * tokens**2, text)
    beside = (
        8 * size.channels * (own + asked) * d
        + 2 * call.frames * (size.freq_dim * d + 7 * d * d)
        + 2 * prompt * (size.text_dim * d + d * d)
        + 4 * prompt * d * d * size.layers
    )
    read = 2 * (1 + size.prope) * call.cached * tokens + 2 * text
    moved = (size.layers - 1) * (read + 2 * own) + own + asked + (read if asked else 0)
    weights = size.parameters - (0 if asked else size.behind_last_keys)
    return Work(call.batch * (blocks + beside), width_bytes * (weights + call.batch * d * moved))


def _block(size: NetworkSize, keys: int, queries: int, pairs: int, text: int) -> int:
    """Operations in a block, but for the text's keys and values; all arguments in tokens."""
    d = size.width
    return (
        4 * keys * d * d
        + (4 + 2 * size.prope) * queries * d * d
        + _self_attention(size, pairs)
        + 4 * queries * d * d
        + 4 * d * queries * text
        + 4 * queries * d * size.ffn
    )


def passes(call: Call) -> int:
    """Operations of a call in units of one forward: forward and backward."""
    return 1 + call.backward


def kept(size: NetworkSize, call: Call, tokens: int) -> Work:
    """Of a forward, what checkpointing does not recompute unless it is ``full``."""
    _, seen = call.last or (call.frames, call.seen)
    pairs = ((size.layers - 1) * call.seen + seen) * tokens**2
    return Work(call.batch * _self_attention(size, pairs))


def _self_attention(size: NetworkSize, pairs: int) -> int:
    """Operations of the kernel for pairs of a query token and a key token."""
    return (1 + size.prope) * 4 * size.width * pairs


def optimizer(size: NetworkSize) -> Work:
    """Work of an AdamW update of one network."""
    return Work(0.0, _ADAMW_BYTES * size.parameters)
