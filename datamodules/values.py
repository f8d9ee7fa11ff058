"""What is stored is looked at first: finite, of a possible size, and not one value throughout.

Diffusion code ends without an error when it has made NaN, and NaN rounded to pixels is a black
video. So every writer of arrays or weights asks `fault` before it writes.
"""

from __future__ import annotations

import math
from typing import Any

LARGEST = 1e4
"""Normalised latents, embeddings and weights are of order 1; beyond this something has diverged."""
VARIED = ("latents", "trajectory", "video")
"""Fields of a sample that are never constant. A generated clip starts from noise, in a world of
closed form as well, and is one value throughout only if it was clipped or overwritten; a prompt's
embedding or the state of a digit at rest may be constant."""


def fault(values: Any, varied: bool = False) -> str:
    """What is wrong with an array, such as "not finite (nan)"; "" if nothing.

    One pass over the values, on the device where they are.

    Args:
        values: a numpy array or a torch tensor of any shape and number type.
        varied: refuse more than one value that are all the same.
    """
    count = math.prod(values.shape)
    if not count:
        return ""
    both = values.aminmax() if hasattr(values, "aminmax") else (values.min(), values.max())
    low, high = map(float, both)
    if not math.isfinite(low) or not math.isfinite(high):
        return f"not finite ({low if math.isnan(low) or math.isinf(low) else high})"
    if max(-low, high) > LARGEST:
        return f"out of range ({low:.3g} to {high:.3g}; {LARGEST:g} is far beyond any real one)"
    if varied and count > 1 and low == high:
        return f"constant ({low:g} everywhere)"
    return ""
