"""The network contract: one forward signature serves every algorithm.

    v = net(x, t, text, *, frames, visible=None, cache=None, write_cache=False, predicted=None)

    x            [B, N, C, H, W]  latent frames, clean or noisy
    t            [B, N] float32   noise level of each frame, 0 data .. 1 noise
    text         [B, L, D]        prompt embedding
    frames       [N] int64        frame index (RoPE position); clean and noisy copies share it
    visible      [N, N] bool      attention mask, row = query frame, column = key frame; None: full
    cache        KVCache | None   KV cache of earlier frames, seen by every query
    write_cache  bool             append this call's keys and values; only without gradient
    predicted    int | None       how many frames, the last P, are asked for; None: all of them
    v            [B, P, C, H, W]  float32, velocity eps - x0 of those

A network whose `config.cameras` is true takes one argument more, which no algorithm knows of: it is
bound to the cameras of a batch first (`networks/cameras.py`, `Posed`).

    cameras      [B, N, 3, 4, 4]  float32, of each frame its projective matrix, the inverse of that,
                                  and the motion since the frame before

Teacher forcing, diffusion forcing, bidirectional scoring and cached rollout are *callers* of this
one function, not modes of it: teacher forcing passes [clean | noisy] frames with an attention mask
(who sees whom) and has the noisy ones predicted; a rollout passes one block and a KV cache, and
where it only writes the cache has none predicted.

Every network guarantees (tests/test_networks.py): a frame has no influence on frames that cannot
see it, directly or through others; the parallel pass equals the block-by-block cached pass; what is
predicted does not depend on how much is; gradient flows into a call's own frames, never into the
cache; samples of a batch are independent.

`frames` and `visible` are read on the host (they are keys of small caches): keep them on the CPU.
`config` names the constructor's arguments, among them `in_channels` and `text_dim`, which are
checked against the data.

A network is a folder here. Its `__init__.py` says, in a literal, which `_class_name` of config.json
is which class (``NETWORKS = {"Mine": "module.Mine"}``); a recipe builds it by `class: Mine` in its
section `network`, whose other keys are the constructor's arguments. A class with weights loads as
diffusers' `ModelMixin` does. What it may offer beside the contract, and what holds without:

    has_weights = False            config.json is all there is of it; without: it has weights
    counted_as_wan = True          memory and operations follow Wan's formulas, from arguments that
                                   are called as Wan's; without: they are not counted, and said so
    silent_at_first = (...)        arguments whose weights change no output before they learn, which
                                   weights may be given later; without: none
    zero_head()                    makes a new network's output zero; without: as constructed
    to_bfloat16()                  halves, in place, the weights of a frozen network that bfloat16
                                   autocast would round anyway; without: they stay float32
    accelerated(compiled, graphs)  the network for sampling on CUDA; without: the network itself
    compile_blocks()               compiles its layers, for training on CUDA; without: they are not
    with_second_time()             the network with an argument ``until`` [B, N] of its call, the
                                   time r of MeanFlow's u(x_t, t, r), 0 where it is left out, and
                                   with the attribute ``two_times = True``; without: no TF-MeanFlow
    gradient_checkpointing         an attribute that is set to recompute activations, True or
                                   "full" (`ranges.Checkpointing`); without: nothing is
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from lightning_modules.networks.closed_form.network import ClosedForm
    from lightning_modules.networks.wan.kv_cache import KVCache
    from lightning_modules.networks.wan.transformer import Wan

__all__ = ["ClosedForm", "KVCache", "Network", "Wan"]


def classes() -> dict[str, str]:
    """What config.json calls a network -> its class, as ``package.module.Class``.

    Folders are read, not imported: that of the encoders, which is none, would import torch.
    """
    found = {}
    for file in sorted(file for folder in __path__ for file in Path(folder).glob("*/__init__.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NETWORKS":
                for name, home in ast.literal_eval(node.value).items():
                    found[name] = f"{__name__}.{file.parent.name}.{home}"
    return found


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
        predicted: int | None = None,
    ) -> "torch.Tensor":
        """Velocity eps - x0 of the last `predicted` frames of `x`."""
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
    for home in (f"{__name__}.wan.kv_cache.KVCache", *classes().values()):
        module, _, own = home.rpartition(".")
        if own == name:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
