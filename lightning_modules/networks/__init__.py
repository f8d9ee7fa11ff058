"""The network contract: one forward signature serves every algorithm.

    v = net(x, t, text, *, frames, visible=None, cache=None, write_cache=False)

    x            [B, N, C, H, W]  latent frames, clean or noisy
    t            [B, N] float32   noise level of each frame, 0 data .. 1 noise
    text         [B, L, D]        prompt embedding
    frames       [N] int64        frame index (RoPE position); clean and noisy copies share it
    visible      [N, N] bool      attention mask, row = query frame, column = key frame; None: full
    cache        KVCache | None   KV cache of earlier frames, seen by every query
    write_cache  bool             append this call's keys and values; only without gradient
    v            [B, N, C, H, W]  float32, velocity eps - x0

Teacher forcing, diffusion forcing, bidirectional scoring and cached rollout are *callers* of this
one function, not modes of it: teacher forcing passes [clean | noisy] frames with an attention mask
(who sees whom); a rollout passes one block and a KV cache.

Every network guarantees (tests/test_networks.py): a frame has no influence on frames that cannot
see it, directly or through others; the parallel pass equals the block-by-block cached pass;
gradient flows into a call's own frames, never into the cache; samples of a batch are independent.

`frames` and `visible` are read on the host (they are keys of small caches): keep them on the CPU.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from lightning_modules.networks.closed_form.network import ClosedForm
    from lightning_modules.networks.wan.kv_cache import KVCache
    from lightning_modules.networks.wan.transformer import Wan

__all__ = ["ClosedForm", "KVCache", "Network", "Wan"]

_HOMES = {
    "Wan": "wan.transformer",
    "ClosedForm": "closed_form.network",
    "KVCache": "wan.kv_cache",
}


@runtime_checkable
class Network(Protocol):
    """The interface of a network; see the module's docstring for shapes."""

    config: Any

    def __call__(
        self,
        x: "torch.Tensor",
        t: "torch.Tensor",
        text: "torch.Tensor",
        *,
        frames: "torch.Tensor",
        visible: "torch.Tensor | None" = None,
        cache: "KVCache | None" = None,
        write_cache: bool = False,
    ) -> "torch.Tensor":
        """Velocity eps - x0 of every frame of `x`."""
        ...

    def new_cache(self, frames: int | None = None) -> "KVCache":
        """An empty KV cache for one rollout of one batch.

        With ``frames`` it has that capacity and is for sampling only (under torch.no_grad()), as
        it may be written in place.
        """
        ...

    def save_pretrained(self, save_directory: Any) -> None:
        """Write weights and config where stock diffusers can read them."""
        ...


def __getattr__(name: str) -> Any:
    """Import a class when it is first asked for: diffusers takes seconds to load (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
