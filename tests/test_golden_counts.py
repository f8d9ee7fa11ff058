"""Memory and operations of the stages, against earlier counts from descriptions by hand.

`golden_counts.json` holds those counts. Where the recorded calls of a stage give another value, the
reason is stated here with the difference. They asked the last layer for every frame: so do the
comparisons, and what is saved by asking for the predicted ones alone is a test of its own.
"""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from asked import asked

from experiments.bench.count import Work
from experiments.bench.pairs import calls_of_trajectory
from experiments.bench.random_models import Subject
from experiments.bench.rollout import Rollout
from experiments.bench.sizes import NetworkSize, scale_tree
from experiments.bench.train import networks_of, step_work
from experiments.checkpoints.wan_keys import PUBLISHED
from experiments.launch.memory.count import FULL, HALF, Load, of_fit
from experiments.launch.stages import asked_of_networks
from experiments.runs.recipe import Library, Resolver
from lightning_modules.diffusion.visibility import block_causal_mask

GOLDEN = json.loads((Path(__file__).parent / "golden_counts.json").read_text())
CLIP = (21, 16, 60, 104)
COUNTED = {  # what the tiny scale was when its counts were made
    "tiny": {
        "clip_shape": [8, 16, 4, 4],
        "stages.pairs.intervals": 16,
        "real_score": {"recipe": "real_score"},
        "score_network.num_layers": 3,
        "score_network.attention_head_dim": 40,
        "score_network.ffn_dim": 480,
    },
}


@cache
def load(size, value):
    return Load(PUBLISHED[size], CLIP, 1, 512, value)


@pytest.mark.parametrize("case", GOLDEN["memory"])
def test_memory_is_as_it_was(case):
    stage, sizes, precision, _, blocks, kept = case.split()
    value = FULL if precision == "float32" else HALF
    run = asked(stage, blocks=int(blocks))
    student, critic, teacher = (load(size, value) for size in sizes.split("/"))
    loads = {"student": student, "critic": critic, "teacher": teacher}
    loads = {role: load for role, load in loads.items() if role in run.networks}
    average = {"student", "critic"} <= loads.keys()
    items = of_fit(
        run, loads, average=average, checkpointing="full" if kept == "recomputed" else False
    )
    assert {item.what: item.bytes for item in items} == GOLDEN["memory"][case]


@cache
def subject(scale):
    return Subject(scale_tree(scale, COUNTED.get(scale, {}), Library()), None)


@cache
def resolver(scale):
    return Resolver(scale)


@pytest.mark.parametrize("case", [case for case in GOLDEN["work"] if "stage" in case])
def test_work_of_a_step_is_as_it_was(case):
    scale, recipe, *turn = case.split()
    run = resolver(scale).resolve(recipe, COUNTED.get(scale))
    asked_of = of_all_frames(asked_of_networks(run.recipe))
    configs = networks_of(run, subject(scale))
    if "critic" in configs:  # every critic was counted as of the student's size
        configs["critic"] = configs["student"]
    (roles,) = [roles for roles in asked_of.steps if not turn or roles == tuple(turn)]
    checkpointing = run.recipe["launch"].get("gradient_checkpointing", False) and "full"
    done, needed = step_work(subject(scale), asked_of, roles, configs, 1, checkpointing)
    found, old = sum(done, Work()), GOLDEN["work"][case]
    fewer = self_rollout_in_fewer_calls(scale, *turn) if "stage3" in recipe else Work()
    assert found.operations + fewer.operations == pytest.approx(old["operations"], rel=1e-12)
    assert needed + fewer.operations == pytest.approx(old["needed"], rel=1e-12)
    assert found.bytes + fewer.bytes == pytest.approx(old["bytes"], rel=1e-12)


def of_all_frames(asked_of):
    """The same calls, but with the last layer for every frame."""
    steps = {
        roles: [
            replace(
                case, calls={role: tuple(map(whole, each)) for role, each in case.calls.items()}
            )
            for case in cases
        ]
        for roles, cases in asked_of.steps.items()
    }
    return replace(asked_of, steps=steps)


def whole(call):
    return replace(call, last=None)


@pytest.mark.parametrize(("scale", "share"), [("tiny", 0.19), ("wan1.3b", 0.016)])
def test_teacher_forcing_asks_the_last_layer_for_half_of_its_frames(scale, share):
    """All but keys and values of the clean half, in a step of three passes."""
    run = resolver(scale).resolve("stage1_teacher_forcing", COUNTED.get(scale))
    asked_of, configs = asked_of_networks(run.recipe), networks_of(run, subject(scale))
    needed, before = (
        step_work(subject(scale), each, ("student",), configs, 1, False)[1]
        for each in (asked_of, of_all_frames(asked_of))
    )
    size, tokens, sizes = (
        NetworkSize.of(configs["student"]),
        subject(scale).tokens,
        subject(scale).blocks,
    )
    d, queries = size.width, sum(sizes) * tokens
    pairs = block_causal_mask(sizes).sum().item() * tokens**2
    products = 8 * d * d + 4 * d * (subject(scale).text_tokens + size.ffn) + 8 * size.channels * d
    assert before - needed == 3 * (products * queries + 4 * d * pairs)
    assert 1 - needed / before == pytest.approx(share, rel=0.02)


def self_rollout_in_fewer_calls(scale, turn):
    """What Stage 3 was said to do and does not.

    A prompt is read by the first call without gradient alone: of the first block's 1.5 denoising
    calls, the one that is left by on the critic's turn and the commit, all but one find it in the
    cache. And on the critic's turn commits ride along with the next block's first call, which
    moves weights and cache once less.
    """
    numbers, text = subject(scale).tree["network"], subject(scale).text_tokens
    d = numbers["num_attention_heads"] * numbers["attention_head_dim"]
    a_prompt = numbers["num_layers"] * 4 * text * d * d
    a_prompt += 2 * text * (numbers["text_dim"] * d + d * d)
    if turn == "student":
        return Work(1.5 * a_prompt, 0.0)
    separate, fused = (GOLDEN["work"][f"{scale} rollout 2 {how}"] for how in ("separate", "fused"))
    return Work(2.5 * a_prompt, separate["bytes"] - fused["bytes"])


@pytest.mark.parametrize(("changed", "size"), [(COUNTED["tiny"], "score_network"), ({}, "network")])
def test_a_critic_is_as_large_as_the_real_score_that_it_starts_from(changed, size):
    """Which may be a base model that was trained on, so that its own recipe has no size."""
    run = resolver("tiny").resolve("stage3_asymmetric_dmd", changed)
    configs, tree = networks_of(run, subject("tiny")), subject("tiny").tree
    assert configs["critic"] == configs["teacher"] == tree[size]
    assert configs["student"] == tree["network"] != tree["score_network"]


@pytest.mark.parametrize("case", [case for case in GOLDEN["work"] if " rollout " in case])
def test_work_of_a_rollout_is_as_it_was(case):
    scale, _, steps, past = case.split()
    encoder = SimpleNamespace(config=SimpleNamespace(vocab_size=2))
    calls = Rollout(subject(scale), None, encoder, None, int(steps), past).calls()
    assert_work(map(subject(scale).work, map(whole, calls)), case)


@pytest.mark.parametrize("case", [case for case in GOLDEN["work"] if " pairs " in case])
def test_work_of_a_trajectory_is_as_it_was(case):
    scale, _, past = case.split()
    tree = subject(scale).tree["stages"]["pairs"]
    calls = calls_of_trajectory(past, subject(scale).blocks, tree["intervals"], tree["guidance"])
    apart = [half for call in calls for half in branches(call)]
    assert_work(map(subject(scale).work, map(whole, apart)), case)


def branches(call):
    """Both branches of guidance, which were calls of their own and moved the weights each."""
    return [replace(call, batch=1)] * call.batch


def test_both_branches_in_one_call_read_the_weights_once():
    """And nothing else is saved: neither operations nor what the caches move."""
    wan, pairs = subject("wan1.3b"), subject("wan1.3b").tree["stages"]["pairs"]
    calls = calls_of_trajectory("causal", wan.blocks, pairs["intervals"], pairs["guidance"])
    together, apart = (
        sum(map(wan.work, map(whole, each)), Work())
        for each in (calls, [half for call in calls for half in branches(call)])
    )
    assert {call.batch for call in calls} == {2}
    assert together.operations == apart.operations
    weights = HALF * NetworkSize.of(wan.tree["network"]).parameters
    assert apart.bytes - together.bytes == pytest.approx(len(calls) * weights, rel=1e-9)


def assert_work(works, case):
    found, old = sum(works, Work()), GOLDEN["work"][case]
    assert found.operations == pytest.approx(old["operations"], rel=1e-12)
    assert found.bytes == pytest.approx(old["bytes"], rel=1e-12)
