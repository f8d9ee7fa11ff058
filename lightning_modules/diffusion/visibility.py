"""Blocks of frames, and attention masks (who sees whom): bool ``[query frame, key frame]``.

Every mask of the method is constant within a frame, so it is at most 42 x 42 at full size and can
be printed; networks expand it to tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, repeat

import torch
from torch import Tensor

NAMED_BLOCKS = {"framewise": 1, "chunkwise": 3}


def partition(blocks: str | int | Sequence[int], frames: int) -> tuple[int, ...]:
    """Block sizes (``num_frame_per_block``) of a clip of ``frames`` frames.

    ``blocks`` is ``framewise`` (1), ``chunkwise`` (3), a size, or a list of sizes whose last is
    repeated, so that ``[1, 3]`` is a first frame alone and then threes.

    Raises:
        ValueError: unknown name, a size below one, or blocks that do not add up to ``frames``.
    """
    if isinstance(blocks, str):
        if blocks not in NAMED_BLOCKS:
            raise ValueError(
                f"blocks: {blocks!r} is none of {', '.join(NAMED_BLOCKS)}, a size, a list"
            )
        blocks = NAMED_BLOCKS[blocks]
    sizes = [blocks] if isinstance(blocks, int) else list(blocks)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"blocks: {blocks!r} has a block of no frames")
    while sum(sizes) < frames:
        sizes.append(sizes[-1])
    if sum(sizes) != frames:
        raise ValueError(
            f"blocks: {blocks!r} cannot cover {frames} frames exactly; choose sizes that add up"
        )
    return tuple(sizes)


def without_end(sizes: Sequence[int]) -> Iterator[int]:
    """These block sizes, then the last one for ever."""
    return chain(sizes, repeat(sizes[-1]))


def spans(sizes: Iterable[int]) -> Iterator[slice]:
    """Each block's slice of the frame axis, however many blocks there are."""
    start = 0
    for end in accumulate(sizes):
        yield slice(start, end)
        start = end


def block_of(sizes: Sequence[int]) -> Tensor:
    """The block each frame belongs to, ``[F]`` int64."""
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def block_causal_mask(sizes: Sequence[int]) -> Tensor:
    """Diffusion forcing's mask: a frame sees its own block and all earlier ones, ``[F, F]``."""
    block = block_of(sizes)
    return block[:, None] >= block[None, :]


def teacher_forcing_mask(sizes: Sequence[int]) -> Tensor:
    """Teacher forcing's mask of ``[clean | noisy]``, ``[2F, 2F]`` (Causal Forcing).

    A clean frame sees clean frames up to its own block. A noisy frame sees the clean frames of
    *strictly* earlier blocks (its own would leak the target) and the noisy frames of its own block.
    """
    block = block_of(sizes)
    query, key = block[:, None], block[None, :]
    clean = torch.cat([key <= query, torch.zeros_like(key == query)], dim=1)
    noisy = torch.cat([key < query, key == query], dim=1)
    return torch.cat([clean, noisy])
