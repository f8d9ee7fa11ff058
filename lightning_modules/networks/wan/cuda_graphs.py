"""Calls of a network as CUDA graphs: captured once per shape, then replayed without Python.

A frame-wise rollout is many short calls, and launching their thousands of kernels one by one takes
about as long as running them. With a `StaticKVCache` every rollout reads and writes the same
addresses, as graphs require.

Not captured, because it changes from call to call: the frame count (on the host), and the prompt's
cross-attention keys and values, which are computed once and copied to where the graphs read them.
The RoPE table is an input like x and t, so that a graph is for any frames: in a full window an
endless stream replays the same few.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor

from lightning_modules.networks.wan.kv_cache import KVCache
from lightning_modules.networks.wan.shapes import first_predicted
from lightning_modules.networks.wan.static_cache import StaticKVCache
from lightning_modules.networks.wan.transformer import Wan

Call = Callable[..., Tensor]


class Graph:
    """A call v = f(x, t, rope, ...) on the current device, captured.

    All graphs share one pool of memory, since their outputs are copied before the next one runs.
    A pool ends with the last graph in it; the next graph begins another.

    Args:
        call: reads no memory but its arguments and buffers that do not move.
        examples: of its arguments.
    """

    _alive: WeakSet["Graph"] = WeakSet()

    def __init__(self, call: Call, *examples: Tensor) -> None:
        self._inputs = [example.clone() for example in examples]
        self._graph = torch.cuda.CUDAGraph()
        # Another thread may be decoding: its allocations must not end the capture.
        how = {"pool": Graph.pool(), "capture_error_mode": "thread_local"}
        with torch.cuda.graph(self._graph, **how):
            self._v = call(*self._inputs)
        Graph._alive.add(self)

    @classmethod
    def pool(cls) -> Any:
        """That of a graph that is alive; torch refuses one without."""
        other = next(iter(cls._alive), None)
        return torch.cuda.graph_pool_handle() if other is None else other._graph.pool()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Replay it for other values."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._v.clone()


@dataclass(frozen=True)
class _Recorded:
    graph: Call
    version: int  # of the cache's buffers
    masks: Any  # that the graph reads: kept alive


class Replay:
    """A `Wan` under the same contract, for sampling; calls without a static cache pass through.

    The first call of a kind runs eagerly, which allocates its buffers; the second is captured.

    Args:
        net: the network.
        record: captures a call as a graph; tests without CUDA pass their own.
    """

    def __init__(self, net: Wan, record: Callable[..., Call] = Graph) -> None:
        self.net, self.config, self._record = net, net.config, record
        self.first_times = 0  # calls that were not replayed
        # What was done with a cache ends with it.
        self._warm: WeakKeyDictionary[KVCache, dict[tuple, int]] = WeakKeyDictionary()
        self._recorded: WeakKeyDictionary[KVCache, dict[tuple, _Recorded]] = WeakKeyDictionary()

    def new_cache(self, frames: int | None = None) -> KVCache:
        """As the network's."""
        return self.net.new_cache(frames)

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        *,
        frames: Tensor,
        visible: Tensor | None = None,
        cache: KVCache | None = None,
        write_cache: bool = False,
        predicted: int | None = None,
        cameras: Tensor | None = None,
    ) -> Tensor:
        """Velocity eps - x0 of the last frames of `x`; see `networks/__init__.py`."""
        how = {"frames": frames, "visible": visible, "cache": cache, "write_cache": write_cache}
        how |= {"predicted": predicted, "cameras": cameras}
        if not isinstance(cache, StaticKVCache):
            return self.net(x, t, text, **how)
        self.net.cross_attention_kv(text, cache)
        positions = tuple(frames.tolist())
        matrix = None if visible is None else tuple(map(tuple, visible.tolist()))
        first = first_predicted(predicted, x.shape[1])
        kind = (len(cache), matrix, first, tuple(x.shape), x.dtype, tuple(text.shape))
        warm, recorded = (each.setdefault(cache, {}) for each in (self._warm, self._recorded))
        if warm.get(kind) != cache.version:
            v = self.net(x, t, text, **how)
            warm[kind] = cache.version
            self.first_times += 1
            return v
        # Made before: nothing can be copied to the device while a graph is captured.
        rope, masks = self.net.rope_and_masks(x, positions, visible, cache, first)
        inputs = (x, t, rope) if cameras is None else (x, t, rope, cameras)
        known = recorded.get(kind)
        if known is None or known.version != cache.version:
            graph = self._record(
                lambda x, t, rope, cameras=None: self.net.velocity(
                    x, t, cache.text, rope, masks, cache, first=first, cameras=cameras
                ),
                *inputs,
            )
            known = recorded[kind] = _Recorded(graph, cache.version, masks)
            self.first_times += 1
        v = known.graph(*inputs)
        if write_cache:
            cache.advance(positions)
        return v
