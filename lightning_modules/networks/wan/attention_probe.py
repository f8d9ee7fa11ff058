"""Which attention kernel is fastest on this device: each is timed once on random numbers."""

import logging
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

log = logging.getLogger(__name__)
CALLS = 5
"""Of each; the shortest counts, so that the first ones may compile and fill caches."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q, k, v to the output [B, T, H * E]."""
Made = Callable[[], Attend]
"""Makes a kernel with its mask, which lives no longer than its turn."""


def fastest(kernels: Mapping[str, Made], q: Tensor, k: Tensor, v: Tensor) -> str:
    """The name of the kernel with the shortest time; all times are logged.

    One that fails (compiler, memory, hardware) is logged with its reason and left out.

    Args:
        kernels: by name.
        q: [B, T, H, E]; its backward pass counts if it requires a gradient.
        k: [B, K, H, E].
        v: as ``k``.

    Raises:
        RuntimeError: none of them works here; says why.
    """
    times, failed = {}, {}
    for name, made in kernels.items():
        try:
            with torch.inference_mode(False), torch.set_grad_enabled(q.requires_grad):
                times[name] = _seconds(made(), q, k, v)
        except Exception as error:  # whatever a compiler or a driver raises
            failed[name] = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
            log.warning("attention: %s cannot be used here: %s", name, failed[name])
    if not times:
        raise RuntimeError(
            "launch.attention: no kernel could be timed: "
            + "; ".join(f"{name}: {why}" for name, why in failed.items())
        )
    best = min(times, key=times.__getitem__)
    log.info(
        "attention: %s where frames are hidden, measured%s for %d queries of %d keys (%s): %s",
        best, " with its backward pass" if q.requires_grad else "",
        q.shape[1], k.shape[1], q.device.type,
        ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in times.items()),
    )  # fmt: skip
    return best


def run_twice(attend: Attend) -> Attend:
    """The kernel in a checkpointed layer that does not keep its output."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.no_grad():
            attend(q, k, v)
        return attend(q, k, v)

    return run


def random_parts(
    queries: int,
    keys: int,
    heads: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
    gradient: bool,
) -> list[Tensor]:
    """q, k and v of one clip, drawn apart; ``heads``: how many, and channels of one."""
    make = torch.Generator(device).manual_seed(0)
    with torch.inference_mode(False):
        return [
            torch.randn(
                (1, tokens, *heads),
                generator=make, device=device, dtype=dtype, requires_grad=gradient,
            )
            for tokens in (queries, keys, keys)
        ]  # fmt: skip


def _seconds(attend: Attend, *parts: Tensor) -> float:
    """The shortest of some calls."""
    device, gradient = parts[0].device, parts[0].requires_grad

    def call() -> float:
        _wait(device)
        start = time.perf_counter()
        out = attend(*parts)
        if gradient:
            torch.autograd.grad(out, parts, out.detach())
        _wait(device)
        return time.perf_counter() - start

    return min(call() for _ in range(CALLS))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
