"""What a network generated is looked at before it is decoded or stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from datamodules.values import fault
from experiments.checkpoints.networks import unfit_weight


def require_sound(
    clips: Tensor,
    keys: Sequence[str],
    network: nn.Module,
    role: str,
    again: Callable[[], Any],
) -> None:
    """Refuse clips that are not finite, out of range or constant.

    Args:
        clips: ``[B, ...]``, with one key each.
        network: that made them, the ``role`` of the run.
        again: makes them once more, to find out at which call of the network it began.

    Raises:
        ValueError: names the first key, the call of the network (frames and noise level), and
            whether its input and its weights were sound.
    """
    faults = {key: why for key, clip in zip(keys, clips, strict=True) if (why := fault(clip, True))}
    if not faults:
        return
    key, why = next(iter(faults.items()))
    others = f" (and {len(faults) - 1} more of {len(keys)})" if len(faults) > 1 else ""
    raise ValueError(
        f"sample {key!r}{others}: what the {role} generated is {why};"
        f" {_first_call(network, again)}; {_weights(network)}. Nothing of this batch is stored"
    )


def _first_call(network: nn.Module, again: Callable[[], Any]) -> str:
    """Where a second run first leaves the sound numbers: a block's frames and its noise level."""
    calls: list[str] = []
    count = 0

    def look(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], v: Tensor) -> None:
        nonlocal count
        count += 1
        if calls or not (why := fault(v)):
            return
        x, t, text = arguments[:3]
        frames, levels = named["frames"].tolist(), t[0].tolist()
        inputs = {"latents": fault(x), "prompt embedding": fault(text)}
        bad = [f"its {name} was {reason}" for name, reason in inputs.items() if reason]
        calls.append(
            f"it began at call {count} of the network, frames {frames[0]}..{frames[-1]} at noise"
            f" level {levels[-1]:.4g} ({'; '.join(bad) or 'its input was sound'}, its output {why})"
        )

    if not hasattr(network, "register_forward_hook"):
        return "the network's calls cannot be watched"
    hook = network.register_forward_hook(look, with_kwargs=True)
    try:
        again()
    finally:
        hook.remove()
    return calls[0] if calls else "every call of the network was sound when it was made again"


def _weights(network: nn.Module) -> str:
    bad = unfit_weight(network.named_parameters()) if isinstance(network, nn.Module) else ""
    return f"weight {bad}" if bad else "the network's weights are finite"
