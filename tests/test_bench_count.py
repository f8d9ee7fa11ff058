"""Operations and bytes from shapes, against torch's counter, real sizes and the paper's costs."""

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
import yaml
from tiny_rollouts import few_steps, make_net, setting
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench import count, predict
from experiments.bench.count import Work
from experiments.bench.device import Peak
from experiments.bench.sizes import NetworkSize
from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.fast_past import FastPast
from lightning_modules.diffusion.rollout import Past, rollout
from lightning_modules.networks import Wan
from lightning_modules.networks.tally import Call, Tally, calls_of

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
    """Operations by torch's counter, which is told what a CPU's attention kernel computes."""
    with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
        action()
    return counter.get_total_flops()


def attention_flop(q, k, v, *_, out_shape=None, **__):
    return 4 * prod(q) * k[-2]


def attention_backward_flop(grad, q, k, v, *_, out_shape=None, **__):
    return 2 * attention_flop(q, k, v)


KERNELS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flop,
}


def inputs(batch: int, frames: int = FRAMES):
    return (
        torch.randn(batch, frames, 4, 4, 4),
        torch.rand(batch, frames),
        torch.randn(batch, TEXT, 8),
    )


def operations(step: Call) -> float:
    return count.work(SIZE, step, TOKENS, TEXT, 4).operations


@pytest.mark.parametrize("batch", [1, 2])
def test_a_pass_over_all_frames(batch):
    net, (x, t, text) = Wan(**NUMBERS), inputs(batch)
    with torch.no_grad():
        found = counted(lambda: net(x, t, text, frames=torch.arange(FRAMES)))
    assert found == operations(Call(FRAMES, FRAMES**2, batch=batch))


def test_a_pass_beside_a_cache_that_knows_the_prompt():
    net, (x, t, text) = Wan(**NUMBERS), inputs(1)
    cache = net.new_cache()
    places = torch.arange(FRAMES)
    with torch.no_grad():
        net(x[:, :3], t[:, :3], text, frames=places[:3], cache=cache, write_cache=True)
        found = counted(lambda: net(x[:, 3:], t[:, 3:], text, frames=places[3:], cache=cache))
    assert found == operations(Call(2, 2 * FRAMES, cached=3, reads_prompt=False))


@pytest.mark.parametrize("predicted", range(FRAMES + 1))
def test_a_pass_of_which_the_last_frames_are_asked_for(predicted):
    """Beside a cached frame; in the last layer the others have no queries, but keys and values."""
    net, tally, (x, t, text) = Wan(**NUMBERS), Tally("network"), inputs(2, FRAMES + 1)

    def call(net, cache, frames, **how):
        places = torch.arange(FRAMES + 1)[frames]
        return net(x[:, frames], t[:, frames], text, frames=places, cache=cache, **how)

    with torch.no_grad():
        cache, held = net.new_cache(), tally.new_cache()
        for each, its in ((net, cache), (tally, held)):
            call(each, its, slice(0, 1), write_cache=True)
        found = counted(lambda: call(net, cache, slice(1, None), predicted=predicted))
        call(tally, held, slice(1, None), predicted=predicted)
    needed = tally.calls[-1]
    assert found == operations(needed)
    assert (found < operations(replace(needed, last=None))) == (predicted < FRAMES)


@pytest.mark.parametrize("cameras", [False, True])
def test_weights_that_a_commit_does_not_need(cameras):
    """Those of the linear layers that it does not call, or for no token."""
    net, (x, t, text) = Wan(**NUMBERS, cameras=cameras), inputs(1)
    how = {"cameras": torch.eye(4).expand(1, FRAMES, 3, 4, 4)} if cameras else {}
    called, found = set(), {}

    def note(module, given, _):
        if isinstance(module, torch.nn.Linear) and given[0].numel():
            called.add(module)

    for module in net.modules():
        module.register_forward_hook(note)
    for predicted in (FRAMES, 0):
        called.clear()
        net(x, t, text, frames=torch.arange(FRAMES), predicted=predicted, **how)
        found[predicted] = called.copy()
    unused = sum(p.numel() for module in found[FRAMES] - found[0] for p in module.parameters())
    size = NetworkSize.of({**NUMBERS, "cameras": cameras})
    assert unused == size.behind_last_keys
    commit, whole = (
        count.work(size, Call(1, 1, last=last), TOKENS, TEXT, 4) for last in ((0, 0), None)
    )
    assert whole.bytes - commit.bytes == 4 * (unused + size.width * (TOKENS + 2 * TEXT))


def test_teacher_forcing_by_a_dense_kernel_computes_what_nobody_sees():
    net, (x, t, text) = Wan(**NUMBERS), inputs(1)
    sizes = [1] * FRAMES
    with torch.no_grad():
        found = counted(lambda: forcing.teacher_forcing(net, x, t, text, sizes, clean=x))
    (needed,) = calls_of(lambda n: forcing.teacher_forcing(n, x, t, text, sizes, clean=x))
    (queries, seen), keys = needed.last, needed.frames
    assert (queries, keys) == (FRAMES, 2 * FRAMES)
    assert found == operations(replace(needed, seen=keys**2, last=(queries, queries * keys)))
    unseen = (SIZE.layers - 1) * (keys**2 - needed.seen) + queries * keys - seen
    assert found - operations(needed) == 4 * SIZE.width * TOKENS**2 * unseen > 0


@pytest.mark.parametrize(
    ("sizes", "steps", "calls"), [([3] * 7, 4, 35), ([1] * 21, 1, 45), ([1] * 21, 2, 65),
                                  ([1] * 21, 4, 105)],
)  # fmt: skip
def test_calls_of_a_clip_are_the_published_ones(sizes, steps, calls):
    """The published code commits the last block too; nobody reads it, so ours does not."""
    random, text, noise = setting(["a"], frames=21)
    denoise = few_steps(random, sizes, steps)
    made = calls_of(lambda net: rollout(Past(net, text), noise, sizes, denoise))
    assert len(made) == calls - 1 and sum(call.writes for call in made) == len(sizes) - 1
    assert [call.reads_prompt for call in made] == [True] + [False] * (calls - 2)
    assert max(call.cached for call in made) == sum(sizes) - sizes[-1]


@pytest.mark.parametrize("sizes", [(1,) * 6, (1, 2, 3)])
def test_a_fused_rollout_as_torch_counts_it(sizes):
    """Commits in one call with what follows, in which a block sees what is written in the same."""
    net, (random, text, noise) = make_net(), setting()

    def clip(net):
        past = FastPast(net, text, frames=6, commit="fused")
        rollout(past, noise, sizes, few_steps(random, sizes))

    made = calls_of(clip)
    assert len(made) == 4 + 2 * (len(sizes) - 1)
    blocks = [sum(sizes[:i]) for i in range(1, len(sizes))]
    unseen = [sizes[i] * sizes[i + 1] for i in range(len(blocks))]  # by a mask, which MATH computes
    size = NetworkSize.of(dict(net.config))
    tokens, length = noise[0, 0, 0].numel() // 4, text.shape[1]
    needed = sum(count.work(size, call, tokens, length, 4).operations for call in made)
    masked = size.layers - 1  # in the last layer only the next block queries, which sees all
    hidden = 4 * 3 * masked * size.width * tokens**2 * sum(unseen)
    with torch.no_grad():
        assert counted(lambda: clip(net)) == needed + hidden


@pytest.mark.parametrize(("name", "billions"), [("1.3B", 1.419), ("14B", 14.289)])
def test_weights_of_the_published_sizes(name, billions):
    with torch.device("meta"):
        there = sum(p.numel() for p in Wan(**WAN[name]).parameters())
    assert there / 1e9 == pytest.approx(billions, abs=1e-3)
    assert NetworkSize.of(WAN[name]).parameters == pytest.approx(there, rel=1e-3)


def test_a_cached_pass_moves_weights_and_cache():
    size = NetworkSize.of(WAN["1.3B"])
    empty, full = (
        count.work(size, Call(1, 1 + cached, cached, False), 1560, 512, 2) for cached in (0, 20)
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
    found[1] |= {"reads": "causal", "states": 6}
    sf_ode = {"recipe": "stage2_self_forcing_ode", "reads": "bidirectional", "states": 5}
    found.append({**found[0], **sf_ode, "seconds": [4 * bidirectional]})
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
    assert "causal_dmd" not in hours, "not measured"
    assert found["causal_ode_to_causal_cd"]["ours"] == pytest.approx(4)
    storage = {init: round(one["storage_gib"]) for init, one in found["initialisations"].items()}
    assert storage == {"self_forcing_ode": 1562, "causal_ode": 1875, "causal_cd": 0}


def test_an_initialisation_of_ones_own_is_predicted_too():
    mine = {"recipe": "stage2_mine", "turn": None, "seconds": [9.0], "clips": 1}
    found = predict.stage2([mine], [21, 16, 60, 104])["initialisations"]["mine"]
    assert found["device_hours"] == pytest.approx(5000 * 64 * 9 / 3600)
    assert found["paper_a800_hours"] is None


def test_the_papers_costs_are_those_of_table_2():
    """Typed twice, because the bench may not import the report; never two numbers."""
    file = Path(__file__).parent.parent / "sweeps" / "tables" / "ablation" / "paper.yaml"
    paper = yaml.safe_load(file.read_text())
    time, storage = (paper["order"].index(name) for name in ("time", "storage"))
    printed = {init: (row[time], row[storage]) for init, row in paper["blocks"][2].items()}
    assert {i: both for i, both in printed.items() if both[0] is not None} == predict.PRINTED


def test_both_turns_of_dmd_count():
    measured = [
        {"recipe": "stage2_causal_dmd", "turn": turn, "seconds": [seconds, seconds], "clips": 2}
        for turn, seconds in (("student", 20.0), ("critic", 10.0))
    ]
    found = predict.stage2(measured, [1, 1, 1, 1])["initialisations"]["causal_dmd"]
    assert found["device_hours"] == pytest.approx(64 * (1000 * 10 + 5000 * 5) / 3600)
