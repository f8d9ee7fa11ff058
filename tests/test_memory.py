"""Estimated memory against the measured memory of small networks."""

import gc
import logging

import psutil
import pytest
import torch
from asked import asked
from minimal import SHAPE, TEXT, batch, network, stage, train
from minimal_runs import SETTINGS, copied

from experiments.__main__ import main
from experiments.checkpoints.wan_keys import PUBLISHED
from experiments.launch.memory.count import FULL, GIB, HALF, Load, of_fit, of_rollout, require
from lightning_modules.causal_cd import CausalCD
from lightning_modules.diffusion.rollout import FewSteps, Past, few_step_times, rollout
from lightning_modules.networks import Wan
from lightning_modules.networks.tally import Call

FULL_CLIP = (21, 16, 60, 104)


def small(heads=2, head_dim=24, ffn=64, layers=2, **more):
    torch.manual_seed(0)
    return Wan(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        ffn_dim=ffn,
        num_layers=layers,
        **more,
    )


def load_of(net, frames, count=2, text=6, value=FULL):
    return Load(numbers(net), (frames, 16, 16, 16), count, text, value)


def one(frames):
    """A call with gradient, of so many frames that all see each other."""
    return Call(frames, frames**2, backward=2)


def numbers(net):
    return {key: value for key, value in net.config.items() if not key.startswith("_")}


def saved_by(net, frames, count=2, text=6, half=False):
    """Bytes that autograd keeps of one pass, weights and their rounded copies aside."""
    weights = {tuple(p.shape) for p in net.parameters()} | {
        tuple(reversed(p.shape)) for p in net.parameters()
    }
    found, alive = {}, []

    def keep(tensor):
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if tuple(tensor.shape) not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    x, prompt = torch.randn(count, frames, 16, 16, 16), torch.randn(count, text, 32)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        net(x, torch.rand(count, frames), prompt, frames=torch.arange(frames))
    return sum(found.values())


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, "full"], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("head_dim", "ffn"), [(24, 64), (32, 256), (48, 96)])
def test_activations_are_what_autograd_keeps(half, checkpointing, head_dim, ffn):
    """By the difference of two depths and two lengths: of layers and tokens, nothing else."""
    value, kept, counted = HALF if half else FULL, {}, {}
    for layers in (1, 3):
        for frames in (2, 6):
            net = small(head_dim=head_dim, ffn=ffn, layers=layers)
            net.gradient_checkpointing = checkpointing
            kept[layers, frames] = saved_by(net, frames, half=half)
            load = load_of(net, frames, value=value)
            counted[layers, frames] = load.saved([one(frames)], checkpointing)

    def slope(table):
        return (table[3, 6] - table[1, 6]) - (table[3, 2] - table[1, 2])

    assert slope(counted) == pytest.approx(slope(kept), rel=0.03)


def rolled_out(net, frames, text=6):
    """A clip of one step a frame, with its graph."""
    noise, sizes = torch.randn(2, frames, 16, 16, 16), [1] * frames
    steps = FewSteps(few_step_times(sizes, 1, 1, 5.0), lambda _: noise)
    return rollout(Past(net, torch.randn(2, text, 32)), noise, sizes, steps)


def saved_by_rollout(net, frames, text=6):
    """Bytes that autograd keeps of it, and what is counted for them, by items."""
    found, alive = {}, []

    def keep(tensor):
        alive.append(tensor)
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        rolled_out(net, frames, text)
    return sum(found.values()), of_rollout_step(net, frames, False, text)


def of_rollout_step(net, frames, checkpointing, text=6):
    load = load_of(net, frames, text=text)
    loads = {role: load for role in ("student", "teacher", "critic")}
    run = asked("AsymmetricDMD", frames=frames, few_steps=1, first_few_steps=1)
    items = of_fit(run, loads, average=False, checkpointing=checkpointing)
    return {item.what: item.bytes for item in items}


def test_a_rollouts_graph_keeps_the_pasts_that_attention_joined():
    """What grows with the square of the frames."""
    kept, counted = zip(*(saved_by_rollout(small(), frames) for frames in (4, 6, 8)), strict=True)
    pasts = [items["pasts kept by each block's graph"] for items in counted]
    bent = [early - 2 * middle + late for early, middle, late in (kept, pasts)]
    assert bent[1] == pytest.approx(bent[0], rel=0.01)


def test_every_block_of_a_rollout_reads_the_prompt_anew():
    """By the difference of two depths, two lengths of clips and two of prompts."""
    tables = {}, {}
    for layers in (1, 3):
        for frames in (4, 8):
            for text in (6, 30):
                kept, items = saved_by_rollout(small(layers=layers), frames, text)
                tables[0][layers, frames, text] = kept
                tables[1][layers, frames, text] = items["activations for the backward pass"]

    def longer(table, layers, frames):
        return table[layers, frames, 30] - table[layers, frames, 6]

    kept, counted = (
        (longer(t, 3, 8) - longer(t, 1, 8)) - (longer(t, 3, 4) - longer(t, 1, 4)) for t in tables
    )
    assert counted == pytest.approx(kept, rel=0.05)


def alive():
    """Bytes of all tensors that Python reaches, by their storages."""
    gc.collect()
    ours = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in ours)}
    return sum(storages.values())


@pytest.mark.usefixtures("nothing_left_of_other_tests")
def test_a_recomputed_rollouts_graph_grows_with_its_frames_not_with_their_square():
    """Checkpointing keeps arguments."""

    net, held = small(), {}
    net.gradient_checkpointing = True
    for frames in (12, 4, 8, 12):  # the first makes the tables that are shared
        before = alive()
        clip = rolled_out(net, frames)
        held[frames] = alive() - before
        clip.sum().backward()
        net.zero_grad()
        del clip
    a_frame = load_of(net, 1).keys_and_values(1)
    assert held[12] - held[8] > 4 * a_frame
    assert abs((held[12] - held[8]) - (held[8] - held[4])) < a_frame
    assert "pasts kept by each block's graph" not in of_rollout_step(net, 8, True)


def test_weights_and_caches_are_exact():
    net, frames = small(), 4
    load = load_of(net, frames)
    assert load.parameters == sum(p.numel() for p in net.parameters())
    sizes = [1] * frames
    text = torch.randn(2, 6, 32)
    past = Past(net, text)
    steps = few_step_times(sizes, 2, 2, 5.0)
    noise = torch.randn(2, frames, 16, 16, 16)
    with torch.no_grad():
        rollout(past, noise, sizes, FewSteps(steps, lambda _: noise))
    cache = past.cache
    held = [*map(cache.read, range(load.layers)), *cache.recall_text(text)]
    found = sum(part.nbytes for pair in held for part in pair)
    # The last block is not committed: nobody asks for it.
    assert found == load.keys_and_values(frames - 1, text=6)


def test_optimizer_and_averages_are_exact():
    """After a step of CD: weights, gradients, moments and theta-, counted on the real objects."""
    module = stage(CausalCD, teacher=network(2), intervals=4, guidance=2.0, decay=0.9,
                   solver="euler", terminal_pair=True)  # fmt: skip
    gradients = []
    module.on_before_optimizer_step = lambda _: gradients.append(
        sum(p.grad.nbytes for p in module.student.parameters())
    )
    trainer = train(module, batch(), 1)
    config = numbers(module.student)
    load = Load(config, SHAPE, 3, TEXT[0], FULL)
    loads = {"student": load, "teacher": load}
    items = of_fit(asked("CausalCD", frames=4), loads, average=False, checkpointing=False)
    counted = {item.what: item.bytes for item in items if item.exact}
    states = trainer.optimizers[0].state.values()
    moments = sum(state[name].nbytes for state in states for name in ("exp_avg", "exp_avg_sq"))
    assert counted == {
        "weights of student, float32": weight_bytes(module.student),
        "their gradients, one network at a time": gradients[0],
        "AdamW: two moments of each weight": moments,
        "averages of the student, float32": weight_bytes(module.target.module),
        "weights of teacher, float32": weight_bytes(module.teacher),
    }


def weight_bytes(net):
    return sum(p.nbytes for p in net.parameters())


def test_the_published_sizes():
    """1.42 and 14.3 billion weights; a 14B score in bfloat16 is 27 GiB; Stage 1 at full size."""
    small_, large = (Load(PUBLISHED[size], FULL_CLIP, 1, 512, HALF) for size in ("1.3B", "14B"))
    assert small_.parameters == pytest.approx(1.419e9, rel=1e-3)
    assert large.parameters == pytest.approx(14.288e9, rel=1e-3)
    assert large.frozen / GIB == pytest.approx(26.9, abs=0.5)
    assert small_.tokens(42) == 65_520
    # Algorithms, 2.5 and 11: a cache of 21 frames takes 5.62 GiB and the text 90 MiB; the inputs of
    # 30 checkpointed layers take 5.6 GiB, and so do the outputs of their self-attention.
    assert small_.keys_and_values(21) / GIB == pytest.approx(5.62, abs=0.01)
    assert small_.keys_and_values(0, 512) / 2**20 == pytest.approx(90, abs=0.1)
    inputs = small_.saved([one(42)], "full") - small_.layer(42)
    assert inputs / GIB == pytest.approx(5.6 + 30 * 512 * 12 * 1536 / GIB, abs=0.05)
    kept = small_.saved([one(42)], True) - small_.saved([one(42)], "full")
    assert kept / GIB == pytest.approx(5.6 + 30 * 65_520 * 12 * 4 / GIB, abs=0.05)


def test_what_cannot_fit_is_refused_with_its_numbers(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    load = Load(PUBLISHED["1.3B"], FULL_CLIP, 1, 512, FULL)
    items = of_rollout(load, frames=3, cached=21, guided=True)
    memory_info = type("Memory", (), {"available": 8 * GIB})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory_info)
    with pytest.raises(ValueError) as refused:
        require(items, torch.device("cpu"), enforce=True)
    said = str(refused.value)
    assert "5.29 GiB   weights" in said and "22.85 GiB   KV cache" in said
    assert "8.00 GiB are free on this machine" in said and "launch.check_memory=false" in said
    require(items, torch.device("cpu"), enforce=False)
    assert "22.85 GiB   KV cache" in caplog.text


@pytest.mark.parametrize("recipe", ["stage1_teacher_forcing", "stage3_asymmetric_dmd", "sample"])
def test_verbs_ask_before_they_load(recipe, tmp_path, monkeypatch, capsys):
    """With no memory at all, every verb that loads a network refuses first."""
    runs = copied(tmp_path, recipe)
    for loader in ("verbs.fit.load_network", "verbs.sample.frozen"):
        monkeypatch.setattr(f"experiments.{loader}", lambda *_: pytest.fail("loaded"))
    memory_info = type("Memory", (), {"available": 0})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory_info)
    verb = "sample" if recipe == "sample" else "fit"
    assert main([verb, recipe, *SETTINGS, "--runs", str(runs)]) == 1
    said = capsys.readouterr().err
    assert "does not fit into memory" in said and "0.00 GiB are free" in said
