"""A frame mask as full rectangles of queries and keys, which need no mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from lightning_modules.networks.wan.masks import Rows

QUERY_TILE = 128
"""Queries that a multiprocessor works on at once, in cuDNN's kernel and in flash-attention's."""
MOST_PARTS = 4
LEAST_KEYS = 1024
"""Keys of a part that are worth a kernel: on an H100 two parts of 780 are slower than one."""
WORTH = 0.03
"""Share of the device that a further part must fill, since merging it takes time too."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Rectangle:
    """Tokens `queries` that see all of the tokens `keys`, each as (start, stop)."""

    queries: Span
    keys: Span

    @property
    def area(self) -> int:
        """Pairs of a query and a key."""
        return (self.queries[1] - self.queries[0]) * (self.keys[1] - self.keys[0])


Rectangles = tuple[Rectangle, ...]


@lru_cache(maxsize=64)
def rectangles(rows: Rows, tokens: int, cached: int) -> Rectangles:
    """The mask in rectangles that do not overlap, halved until none is mixed; large ones first.

    Args:
        rows: which frame sees which, without the cached ones.
        tokens: per frame.
        cached: frames at the front of the keys that all see.
    """
    matrix = [(True,) * cached + row for row in rows]

    def cut(queries: Span, keys: Span) -> list[Rectangle]:
        seen = [row[slice(*keys)] for row in matrix[slice(*queries)]]
        if all(map(all, seen)):
            return [Rectangle(_tokens(queries, tokens), _tokens(keys, tokens))]
        if not any(map(any, seen)):
            return []
        if queries[1] - queries[0] >= keys[1] - keys[0]:
            return [each for half in _halves(queries) for each in cut(half, keys)]
        return [each for half in _halves(keys) for each in cut(queries, half)]

    found = _joined(cut((0, len(matrix)), (0, len(matrix[0]))))
    return tuple(sorted(found, key=lambda each: -each.area))


def edges(parts: Rectangles) -> list[int]:
    """Where the set of rectangles changes from one query to the next."""
    return sorted({edge for part in parts for edge in part.queries})


def best_parts(tiles: int, keys: int, multiprocessors: int) -> int:
    """In how many equal parts to attend to `keys`, so that the last wave of tiles is fullest.

    Args:
        tiles: of queries, over all heads and clips, `QUERY_TILE` queries each.
        keys: that the parts divide.
        multiprocessors: that each work on one tile at a time.
    """

    def filled(count: int) -> float:
        return tiles * count / (ceil(tiles * count / multiprocessors) * multiprocessors)

    fits = (n for n in range(2, MOST_PARTS + 1) if keys % n == 0 and keys // n >= LEAST_KEYS)
    return max((1, *fits), key=lambda count: filled(count) - WORTH * count)


def _halves(span: Span) -> tuple[Span, Span]:
    middle = sum(span) // 2
    return (span[0], middle), (middle, span[1])


def _tokens(span: Span, tokens: int) -> Span:
    return span[0] * tokens, span[1] * tokens


def _joined(parts: Sequence[Rectangle]) -> list[Rectangle]:
    """Rectangles of the same queries whose keys touch are one, then those of the same keys."""
    wide: list[Rectangle] = []
    for part in sorted(parts, key=lambda each: (each.queries, each.keys)):
        if wide and wide[-1].queries == part.queries and wide[-1].keys[1] == part.keys[0]:
            part = Rectangle(part.queries, (wide.pop().keys[0], part.keys[1]))
        wide.append(part)
    high: list[Rectangle] = []
    for part in sorted(wide, key=lambda each: (each.keys, each.queries)):
        if high and high[-1].keys == part.keys and high[-1].queries[1] == part.queries[0]:
            part = Rectangle((high.pop().queries[0], part.queries[1]), part.keys)
        high.append(part)
    return high
