"""Attention with a tangent: masks, numbers, and the dense formula they are compared with.

    TRITON_INTERPRET=1 python tests/tangent_cases.py

runs the Triton kernel in Triton's interpreter, which must be chosen before Triton is imported, and
prints the largest error of each case as JSON.
"""

import json
import sys

import torch

from lightning_modules.diffusion import visibility
from lightning_modules.networks.wan import masks, tangent_attention
from lightning_modules.networks.wan.masks import FrameMask

PARTITIONS = [(1, 1, 1, 1), (2, 2), (1, 3)]


def window(frames=5, size=2, sinks=1):
    """Each frame sees itself, the `size - 1` before it and the first `sinks`."""
    query, key = torch.arange(frames)[:, None], torch.arange(frames)
    return (key <= query) & ((key > query - size) | (key < sinks))


MATRICES = {
    **{f"teacher {p}": visibility.teacher_forcing_mask(p) for p in PARTITIONS},
    **{f"causal {p}": visibility.block_causal_mask(p) for p in PARTITIONS},
    "window": window(),
}


def frame_mask(name, tokens, cached=0):
    return FrameMask(masks.hidden_rows(MATRICES[name], cached), tokens, cached)


def numbers(queries, keys, channels=12, heads=2, dtype=torch.float32, still=(0, 0)):
    """q, k, v and their tangents, zero in `still` leading queries and keys."""
    make = torch.Generator().manual_seed(3)
    lengths = (queries, keys, keys)
    drawn = [
        torch.randn(1, n, heads, channels, generator=make, dtype=torch.float64).to(dtype)
        for n in lengths * 2
    ]
    for dot, end in zip(drawn[3:], (still[0], still[1], still[1]), strict=True):
        dot[:, :end] = 0
    return drawn[:3], drawn[3:]


def dense(q, k, v, mask):
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    if mask is not None:
        frames = torch.nn.functional.pad(torch.tensor(mask.rows), (mask.cached, 0), value=True)
        seen = frames.repeat_interleave(mask.tokens, 0).repeat_interleave(mask.tokens, 1)
        scores = scores.masked_fill(~seen.to(scores.device), -torch.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def expected(parts, dots, mask):
    """Output and tangent of the dense formula in float64; a tangent that is None is zero."""
    parts = [part.double() for part in parts]
    dots = [
        torch.zeros_like(part) if dot is None else dot.double()
        for part, dot in zip(parts, dots, strict=True)
    ]
    return torch.func.jvp(lambda *p: dense(*p, mask), tuple(parts), tuple(dots))


def error(found, wanted):
    """The largest difference, in units of the largest number."""
    return ((found.double() - wanted).abs().max() / wanted.abs().max()).item()


def of_kernel(parts, dots, mask):
    """The error of the Triton kernel on CPU tensors, in the interpreter."""
    from lightning_modules.networks.wan import tangent_kernel

    out, lse = tangent_attention.by_runs(*parts, mask)
    found = tangent_kernel.tangent(*parts, out, lse, *dots, mask)
    return error(found, expected(parts, dots, mask)[1])


def main():
    """Tiles so small that some are seen entirely, frames end inside others, and some are left."""
    from lightning_modules.networks.wan import tangent_kernel

    masks.TILE, tangent_kernel.TILE[torch.float32], found = 32, 16, {}
    for name in MATRICES:
        for tokens, cached in ((7, 0), (12, 2), (33, 0)):
            if tokens == 33 and not name.endswith("(2, 2)"):
                continue
            mask = frame_mask(name, tokens, cached)
            frames = len(mask.rows)
            for still in (0, cached + frames // 2):
                drawn = numbers(
                    frames * tokens, (cached + frames) * tokens, heads=1 + (tokens == 7),
                    still=(max(0, still - cached) * tokens, still * tokens),
                )  # fmt: skip
                found[f"{name}, {tokens} tokens, {cached} cached, {still} still"] = of_kernel(
                    *drawn, mask
                )
    parts, (q_dot, k_dot, v_dot) = numbers(37, 45)
    found["no mask"] = of_kernel(parts, (q_dot, k_dot, v_dot), None)
    found["no mask, still keys"] = of_kernel(parts, (q_dot, None, None), None)
    found["still queries"] = of_kernel(parts, (None, k_dot, v_dot), None)
    found["v alone"] = of_kernel(parts, (None, None, v_dot), None)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
