"""Splits and subsets by hash: the split of a name does not depend on the rest of the table.

A larger set extends a smaller one, and no library's random generator is involved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

SPLITS = ("train", "heldout")
Item = TypeVar("Item")


def number_of(*words: object) -> int:
    """64 bits that depend on the words alone."""
    text = "\0".join(str(word) for word in words)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def digest_of(names: Iterable[str]) -> str:
    """SHA-256 of names in order, to check that two processes selected the same items."""
    hashed = hashlib.sha256()
    for name in names:
        hashed.update(hashlib.sha256(name.encode()).digest())
    return hashed.hexdigest()


def split_of(name: str, heldout_percent: float) -> str:
    """The split of `name`; items with equal names are in the same split."""
    held_out = number_of("split", name) < heldout_percent / 100 * 2**64
    return "heldout" if held_out else "train"


def shuffled(items: Iterable[Item], name: Callable[[Item], str], seed: int) -> list[Item]:
    """The items in an order that depends on their names and the seed, and not on their own order.

    A prefix is a random subset, and adding items elsewhere keeps the order of the others.
    """
    return sorted(items, key=lambda item: (number_of(seed, name(item)), name(item)))
