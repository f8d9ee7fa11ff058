"""What the shapes of a call must agree in; see the contract in `networks/__init__.py`."""

from collections.abc import Sequence

from torch import Tensor


def check_shapes(
    x: Tensor, t: Tensor, frames: Tensor, visible: Tensor | None, patch: Sequence[int]
) -> None:
    """Raise ValueError if a call's shapes disagree with each other or with the patch size.

    Args:
        x, t, frames, visible: of the call.
        patch: frames, rows and columns of a patch.
    """
    count = x.shape[1]
    if t.shape != x.shape[:2] or frames.shape != (count,):
        raise ValueError(
            f"x {tuple(x.shape)} needs t {tuple(x.shape[:2])} and frames ({count},), "
            f"got {tuple(t.shape)} and {tuple(frames.shape)}"
        )
    if visible is not None and visible.shape != (count, count):
        raise ValueError(
            f"{count} frames need visible [{count}, {count}], got {tuple(visible.shape)}"
        )
    _, high, wide = patch
    if x.shape[3] % high or x.shape[4] % wide:
        raise ValueError(
            f"latents of {x.shape[3]} x {x.shape[4]} do not divide into {high} x {wide} patches"
        )


def first_predicted(predicted: int | None, frames: int) -> int:
    """The first of a call's `frames` whose velocity is asked for; `frames` if none is.

    Raises:
        ValueError: if `predicted` is more than there are, or negative.
    """
    predicted = frames if predicted is None else predicted
    if not 0 <= predicted <= frames:
        raise ValueError(f"predicted: {predicted} of the last frames, the call has {frames}")
    return frames - predicted
