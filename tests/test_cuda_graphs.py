"""CUDA graphs: what is captured, when it is recaptured, and what stays outside.

Without CUDA a replay is a repeated call on copied inputs. This tests all but the graph itself:
stale frame counters, stale prompts, and a replay of the wrong kind of call.
"""

import gc
import weakref
from contextlib import contextmanager
from itertools import islice

import pytest
import torch
from tiny_rollouts import SHAPE, few_steps, make_net, setting

from lightning_modules.diffusion.fast_past import COMMITS, FastPast
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import (
    Past,
    few_step_times,
    rollout,
    stream,
)
from lightning_modules.diffusion.rollout import few_steps as few_step_block
from lightning_modules.diffusion.visibility import without_end
from lightning_modules.networks.wan import transformer
from lightning_modules.networks.wan.cuda_graphs import Graph, Replay
from lightning_modules.networks.wan.rotary import _rotated, apply_rope, rope_table


class Recorder:
    """Makes recordings that read the inputs they were given when they were made."""

    def __init__(self):
        self.recorded, self.replayed = 0, 0

    def __call__(self, call, *examples):
        self.recorded += 1
        own = [example.clone() for example in examples]

        def replay(*inputs):
            self.replayed += 1
            for kept, given in zip(own, inputs, strict=True):
                kept.copy_(given)
            return call(*own).clone()

        return replay


@pytest.mark.parametrize("commit", COMMITS)
@torch.no_grad()
def test_replayed_rollouts_are_the_same(commit):
    """Three batches of prompts, guided: all of the third is replayed, and nothing is recorded."""
    net, sizes, recorder = make_net(), (1, 2, 3), Recorder()
    negative = setting()[0].normal("negative", (5, 8))[0]
    how = {"frames": 6, "commit": commit}
    fast = FastPast(Replay(net, recorder), negative[None], negative, 2.0, **how)
    plain = FastPast(net, negative[None], negative, 2.0, **how)
    for number, keys in enumerate(("abc", "xyz", "bca")):
        random, text, noise = setting(keys)
        before = recorder.recorded, recorder.replayed
        clips = [
            rollout(past.restart(text), noise, sizes, few_steps(random, sizes))
            for past in (fast, plain)
        ]
        assert torch.equal(*clips)
        if number == 2:
            calls = 4 + 2 + 2 + (2 if commit == "separate" else 0)
            assert (recorder.recorded, recorder.replayed) == (before[0], before[1] + calls)


@pytest.mark.parametrize("follow", [False, True])
@torch.no_grad()
def test_windows_and_other_batch_sizes_are_recorded_anew(follow):
    net, sizes, recorder = make_net(), (1,) * 9, Recorder()
    how = {"frames": 9, "window": 4, "sinks": 1, "sinks_follow": follow}
    random, text, noise = setting(frames=9)
    fast = FastPast(Replay(net, recorder), text, **how)
    for keys in ("abc", "abc", "ab", "abc", "abc"):
        random, text, noise = setting(keys, 9)
        expected = rollout(FastPast(net, text, **how), noise, sizes, few_steps(random, sizes))
        made = rollout(fast.restart(text), noise, sizes, few_steps(random, sizes))
        assert torch.equal(made, expected)
    assert recorder.replayed > recorder.recorded > 0


@torch.no_grad()
def test_a_longer_past_is_another_kind_of_call():
    """The same frame with more context: a graph of the shorter context would not see all."""
    recorder = Recorder()
    net = Replay(make_net(), recorder)
    _, text, noise = setting()
    cache, t = net.new_cache(3), torch.ones(3, 1)
    late = {"frames": torch.tensor([2]), "cache": cache}
    for _ in range(3):
        net(noise[:, :1], t, text, **late)
    assert (recorder.recorded, recorder.replayed) == (1, 2)
    net(noise[:, :1], t, text, frames=torch.tensor([0]), cache=cache, write_cache=True)
    net(noise[:, :1], t, text, **late)
    assert (recorder.recorded, recorder.replayed) == (1, 3), "with other frames it is the same"


@torch.no_grad()
def test_a_call_of_which_less_is_predicted_is_another_kind():
    recorder, plain = Recorder(), make_net()
    net, (_, text, noise), t = Replay(plain, recorder), setting(), torch.ones(3, 2)
    cache, how = net.new_cache(2), {"frames": torch.arange(2)}
    expected = plain(noise[:, :2], t, text, **how)
    for _ in range(3):
        for predicted in (None, 1, 0):
            v = net(noise[:, :2], t, text, cache=cache, **how, predicted=predicted)
            first = 0 if predicted is None else 2 - predicted
            torch.testing.assert_close(v, expected[:, first:], rtol=1e-5, atol=1e-6)
    assert (recorder.recorded, recorder.replayed) == (3, 6)


@torch.no_grad()
def test_nothing_is_made_for_a_call_while_it_is_recorded(monkeypatch):
    """No table is asked for, in a cache or not: copies to the device cannot be captured."""
    recorded = []

    def record(call, *examples):
        with monkeypatch.context() as patched:
            patched.setattr(transformer, "rope_table", None)
            patched.setattr(transformer, "attention_mask", None)
            call(*examples)
        recorded.append(call)
        return call

    net, (_, text, noise) = Replay(make_net(), record), setting()
    how = {"frames": torch.tensor([0]), "cache": net.new_cache(1)}
    for _ in range(2):
        net(noise[:, :1], torch.ones(3, 1), text, **how)
    assert len(recorded) == 1


@pytest.mark.parametrize("commit", COMMITS)
@torch.no_grad()
def test_an_endless_stream_records_no_more_once_its_window_is_full(commit):
    net, recorder = make_net(), Recorder()
    random, text, _ = setting("a")

    def blocks(net):
        past = FastPast(net, text, frames=None, window=4, sinks=1, commit=commit)
        times = few_step_times((1, 1), 2, 2, 5.0)
        return stream(
            past,
            lambda block: random.normal(f"noise/{block.start}", (1, *SHAPE[1:])),
            without_end([1]),
            lambda past, x, block, index: few_step_block(past, x, block, times[1], lambda _: x),
        )

    counts = []
    both = zip(blocks(Replay(net, recorder)), blocks(net), strict=True)
    for replayed, plain in islice(both, 30):
        assert torch.equal(replayed, plain)
        counts.append(recorder.recorded)
    assert counts[9] > 0 and counts[9:] == counts[9:10] * 21


@torch.no_grad()
def test_calls_without_fixed_buffers_pass_through():
    net, recorder, sizes = make_net(), Recorder(), (1, 2, 3)
    random, text, noise = setting()
    expected = rollout(Past(net, text), noise, sizes, few_steps(random, sizes))
    made = rollout(Past(Replay(net, recorder), text), noise, sizes, few_steps(random, sizes))
    assert torch.equal(made, expected) and not recorder.recorded


def test_both_forms_of_a_rotation_agree():
    x = torch.randn(2, 12, 2, 24)
    rope = rope_table((3, 700), 2, 3, 24, torch.device("cpu"))
    real = _rotated(x.unflatten(-1, (-1, 2)), rope).flatten(-2)
    torch.testing.assert_close(real, apply_rope(x, rope), rtol=1e-5, atol=1e-6)
    assert apply_rope(x.bfloat16(), rope).dtype == torch.bfloat16


@torch.no_grad()
def test_graphs_end_with_their_cache():
    """A server makes a cache for each visitor."""
    kept = []

    class Held:
        def __init__(self, call, *examples):
            kept.append(weakref.ref(self))

        def __call__(self, *inputs):
            return torch.zeros(())

    net, (_, text, noise) = Replay(make_net(), Held), setting()
    cache = net.new_cache(1)
    for _ in range(3):
        net(noise[:, :1], torch.ones(3, 1), text, frames=torch.tensor([0]), cache=cache)
    assert len(kept) == 1 and kept[0]() is not None
    del cache
    gc.collect()
    assert kept[0]() is None


def test_graphs_share_the_pool_of_one_that_is_alive(monkeypatch):
    """torch refuses a pool whose graphs have all ended (seen on an H100 with torch 2.11)."""
    alive, begun = set(), []

    class Captured:
        def pool(self):
            return self.used

    @contextmanager
    def capture(graph, pool, capture_error_mode):
        assert capture_error_mode == "thread_local", "a thread that decodes would end it"
        assert pool in alive or pool == begun[-1], "a pool without graphs"
        graph.used = pool
        yield
        alive.add(pool)
        weakref.finalize(graph, alive.discard, pool)

    def handle():
        begun.append(len(begun))
        return begun[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Captured)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", handle)
    graphs = [Graph(torch.neg, torch.ones(1)) for _ in range(2)]
    assert begun == [0]
    graphs.clear()
    gc.collect()
    assert not alive
    assert Graph(torch.neg, torch.ones(1))._graph.pool() == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
@pytest.mark.parametrize("commit", COMMITS)
@torch.no_grad()
def test_cuda_graphs_sample_the_same(commit):
    device, sizes = torch.device("cuda"), (1, 2, 3)
    net = make_net().to(device)
    fast = plain = None
    for keys in ("abc", "xyz", "bca"):
        random = Randomness(1, 0, list(keys), device)
        text, noise = random.normal("text", (5, 8)), random.normal("noise", (6, 4, 4, 4))
        fast = fast or FastPast(Replay(net), text, frames=6, commit=commit)
        plain = plain or FastPast(net, text, frames=6, commit=commit)
        clips = [
            rollout(past.restart(text), noise, sizes, few_steps(random, sizes))
            for past in (fast, plain)
        ]
        torch.testing.assert_close(*clips, rtol=1e-4, atol=1e-5)
