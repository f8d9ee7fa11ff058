"""Operations and bytes from shapes: beside torch's counter, real sizes and the paper's costs."""

import pytest
import torch
from tiny_rollouts import few_steps, make_net, setting
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench import count, predict
from experiments.bench.count import Pass, Work
from experiments.bench.device import Peak
from experiments.bench.sizes import NetworkSize
from lightning_modules.diffusion import forcing, visibility
from lightning_modules.diffusion.fast_past import FastPast
from lightning_modules.diffusion.rollout import rollout
from lightning_modules.networks import Wan

NUMBERS = {
    "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": 8, "freq_dim": 16, "ffn_dim": 40, "num_layers": 3,
}  # fmt: skip
FRAMES, TOKENS, TEXT = 5, 4, 7
SIZE = NetworkSize.of(NUMBERS)
WAN = {
    "1.3B": {**NUMBERS, "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16,
             "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "ffn_dim": 8960,
             "num_layers": 30},
    "14B": {**NUMBERS, "num_attention_heads": 40, "attention_head_dim": 128, "in_channels": 16,
            "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "ffn_dim": 13824,
            "num_layers": 40},
}  # fmt: skip


def counted(action) -> int:
    """Operations by torch's counter, which sees attention as the products that it is."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


def inputs(batch: int, frames: int = FRAMES):
    return (
        torch.randn(batch, frames, 4, 4, 4),
        torch.rand(batch, frames),
        torch.randn(batch, TEXT, 8),
    )


def operations(step: Pass) -> float:
    return count.work(SIZE, step, TOKENS, TEXT, 4).operations


@pytest.mark.parametrize("batch", [1, 2])
def test_a_pass_over_all_frames(batch):
    net, (x, t, text) = Wan(**NUMBERS), inputs(batch)
    with torch.no_grad():
        found = counted(lambda: net(x, t, text, frames=torch.arange(FRAMES)))
    assert found == operations(count.bidirectional(FRAMES, batch))


def test_a_pass_beside_a_cache_that_knows_the_prompt():
    net, (x, t, text) = Wan(**NUMBERS), inputs(1)
    cache = net.new_cache()
    places = torch.arange(FRAMES)
    with torch.no_grad():
        net(x[:, :3], t[:, :3], text, frames=places[:3], cache=cache, write_cache=True)
        found = counted(lambda: net(x[:, 3:], t[:, 3:], text, frames=places[3:], cache=cache))
    assert found == operations(Pass(2, 2 * FRAMES, cached=3, reads_prompt=False))


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1], [3, 2], [5]])
def test_what_is_seen(sizes):
    """Pairs of frames that see each other, as the masks have them."""
    assert count.teacher_forcing(sizes).seen == int(visibility.teacher_forcing_mask(sizes).sum())
    assert count.diffusion_forcing(sizes).seen == int(visibility.block_causal_mask(sizes).sum())
    assert count.teacher_forcing(sizes).frames == 2 * sum(sizes)


def test_teacher_forcing_by_a_dense_kernel_computes_what_nobody_sees():
    net, (x, t, text) = Wan(**NUMBERS), inputs(1)
    sizes = [1] * FRAMES
    with torch.no_grad():
        found = counted(lambda: forcing.teacher_forcing(net, x, t, text, sizes, clean=x))
    needed = count.teacher_forcing(sizes)
    assert found == operations(Pass(needed.frames, needed.frames**2))
    unseen = 4 * SIZE.layers * SIZE.width * TOKENS**2 * (needed.frames**2 - needed.seen)
    assert found - operations(needed) == unseen > 0


@pytest.mark.parametrize(
    ("checkpointed", "passes"), [(False, count.PLAIN), (True, count.CHECKPOINTED)]
)
def test_a_step_is_three_passes_and_one_more_where_blocks_are_recomputed(checkpointed, passes):
    """Up to the gradients of inputs, which nobody asks for: a few per cent at this size."""
    net, (x, t, text) = Wan(**NUMBERS), inputs(1)
    net.gradient_checkpointing = checkpointed
    found = counted(lambda: net(x, t, text, frames=torch.arange(FRAMES)).sum().backward())
    assert 0.95 * passes < found / operations(count.bidirectional(FRAMES)) <= passes


@pytest.mark.parametrize(
    ("sizes", "steps", "calls"),
    [([3] * 7, [4] * 7, 35), ([1] * 21, [4] + [1] * 20, 45), ([1] * 21, [4] + [2] * 20, 65),
     ([1] * 21, [4] * 21, 105)],
)  # fmt: skip
def test_calls_of_a_clip_are_the_published_ones(sizes, steps, calls):
    """The published code commits the last block too; nobody reads it, so ours does not."""
    assert len(count.rollout(sizes, steps, commits=len(sizes))) == calls
    passes = count.rollout(sizes, steps)
    assert len(passes) == calls - 1
    assert [step.reads_prompt for step in passes] == [True] + [False] * (calls - 2)
    assert max(step.cached for step in passes) == sum(sizes) - sizes[-1]


@pytest.mark.parametrize("sizes", [(1,) * 6, (1, 2, 3)])
def test_fused_commits_are_one_pass_with_what_follows(sizes):
    """Frames, pairs that see each other and cached frames of every call that a rollout makes."""
    net, (random, text, noise), calls = make_net(), setting(), []

    def watched(x, t, text, *, frames, cache, visible=None, **how):
        queries, held = len(frames), len(cache)
        seen = queries * queries if visible is None else int(visible.sum())
        calls.append((queries, seen + queries * held, held))
        return net(x, t, text, frames=frames, cache=cache, visible=visible, **how)

    watched.new_cache = net.new_cache
    with torch.no_grad():
        past = FastPast(watched, text, frames=6, commit="fused")
        rollout(past, noise, sizes, few_steps(random, sizes))
    passes = count.rollout(sizes, [4] + [2] * (len(sizes) - 1), fused=True)
    assert [(step.frames, step.seen, step.cached) for step in passes] == calls
    assert [step.reads_prompt for step in passes] == [True] + [False] * (len(calls) - 1)


@pytest.mark.parametrize(("name", "billions"), [("1.3B", 1.419), ("14B", 14.289)])
def test_weights_of_the_published_sizes(name, billions):
    with torch.device("meta"):
        there = sum(p.numel() for p in Wan(**WAN[name]).parameters())
    assert there / 1e9 == pytest.approx(billions, abs=1e-3)
    assert NetworkSize.of(WAN[name]).parameters == pytest.approx(there, rel=1e-3)


def test_a_cached_pass_moves_weights_and_cache():
    size = NetworkSize.of(WAN["1.3B"])
    empty, full = (
        count.work(size, Pass(1, 1 + cached, cached, False), 1560, 512, 2) for cached in (0, 20)
    )
    assert full.bytes - empty.bytes == 20 * 1560 * 2 * 1536 * 30 * 2  # keys and values, bfloat16
    assert 2 * size.parameters < empty.bytes < 2.3 * size.parameters


def test_the_roofline_is_the_slower_of_both():
    peak = Peak(100.0, 10.0, "float32", 1, 1)
    assert peak.least_seconds(Work(1000.0, 10.0)) == 10.0
    assert peak.least_seconds(Work(10.0, 1000.0)) == 100.0


def rows(a_pass: float) -> list[dict]:
    """What would have been measured if a teacher-forcing pass took so long, a backward two."""
    bidirectional = 5000 / 11600 * a_pass
    stages = {"causal_cd": 7, "causal_ode": 4}
    found = [
        {"recipe": f"stage2_{init}", "turn": None, "seconds": [passes * a_pass], "clips": 1}
        for init, passes in stages.items()
    ]
    found.append({**found[0], "recipe": "stage2_self_forcing_ode", "seconds": [4 * bidirectional]})
    for past, seconds in (("causal", a_pass), ("bidirectional", bidirectional)):
        half = {"seconds": [2 * 48 * seconds], "clips": 2, "intervals": 24}
        found.append({"past": past, **half})
    return found


def test_the_prediction_gives_the_papers_costs_from_its_own():
    """CD's 2,900 hours, taken apart into passes, make causal ODE's 11,600: the printed ratio 4."""
    a_pass = 2900 * 3600 / (5000 * 64) / 7
    found = predict.stage2(rows(a_pass), [21, 16, 60, 104])
    hours = {init: one["device_hours"] for init, one in found["initialisations"].items()}
    assert hours["causal_cd"] == pytest.approx(2900)
    assert hours["causal_ode"] == pytest.approx(11600)
    assert hours["self_forcing_ode"] == pytest.approx(5000)
    assert hours["causal_dmd"] is None, "not measured"
    assert found["causal_ode_to_causal_cd"]["ours"] == pytest.approx(4)
    storage = {init: round(one["storage_gib"]) for init, one in found["initialisations"].items()}
    assert storage == {
        "self_forcing_ode": 1562, "causal_ode": 1875, "causal_dmd": 0, "causal_cd": 0
    }  # fmt: skip


def test_both_turns_of_dmd_count():
    measured = [
        {"recipe": "stage2_causal_dmd", "turn": turn, "seconds": [seconds, seconds], "clips": 2}
        for turn, seconds in (("student", 20.0), ("critic", 10.0))
    ]
    found = predict.stage2(measured, [1, 1, 1, 1])["initialisations"]["causal_dmd"]
    assert found["device_hours"] == pytest.approx(64 * (1000 * 10 + 5000 * 5) / 3600)
