"""A new stage is counted correctly without being listed by name anywhere."""

import pytest
import torch
from asked import asked
from minimal import network

from experiments.bench.count import Work
from experiments.bench.random_models import Subject
from experiments.bench.train import step_work
from experiments.launch.memory.count import FULL, SAVED, SAVED_TEXT, Load, of_fit
from experiments.launch.stages import stage_class
from lightning_modules import stages
from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.losses import regression
from lightning_modules.diffusion.rollout import FewSteps, Past, few_step_times, rollout
from lightning_modules.networks.tally import Tally
from lightning_modules.training.dry_run import MOST, outcomes
from lightning_modules.training.ema import EMA
from lightning_modules.training.stage import Stage

FRAMES, TEXT, BATCH = 3, 5, 2
CONFIG = {
    "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16, "out_channels": 16,
    "text_dim": 8, "freq_dim": 16, "ffn_dim": 40, "num_layers": 3,
}  # fmt: skip
WIDTH, FFN, LAYERS = 24, 40, 3
GRID = 4  # tokens of a frame: latents of 4 x 4
LOAD = Load(CONFIG, (FRAMES, 16, 4, 4), BATCH, TEXT, FULL)


class TeacherForced(Stage):
    """Learns a guided teacher's velocity beside the clean past, and keeps an average."""

    def __init__(self, *, teacher, **stage):
        super().__init__(**stage)
        self.freeze("teacher", teacher)
        self.target = EMA(self.student, 0.9)

    def networks(self):
        return super().networks() | {"target": self.target.module}

    def training_step(self, batch, batch_index):
        random, x0, text = self.randomness(batch), batch["latents"], batch["text"]
        t = self.times_per_block(random)

        def v(net, c):
            return forcing.teacher_forcing(net, x0, t, c, self.sizes, clean=x0)

        with torch.no_grad():
            goal = forcing.guided(lambda c: v(self.teacher, c), text, self.negative, 3.0)
        return regression(v(self.student, text), goal)


class RolledOut(Stage):
    """Generates, leaves at a step of chance, and is judged by a frozen network of whole clips."""

    fields = ("text",)

    def __init__(self, *, teacher, few_steps: int, **stage):
        super().__init__(**stage)
        self.freeze("teacher", teacher)
        self.few_steps = few_steps

    def training_step(self, batch, batch_index):
        random, text = self.randomness(batch), batch["text"]
        times = few_step_times(self.sizes, self.few_steps, self.few_steps, self.shift)
        exits = [random.shared_integer("exit", self.few_steps)] * len(self.sizes)
        noise = random.normal("noise", self.clip_shape)
        x = rollout(Past(self.student, text), noise, self.sizes,
                    FewSteps(times, lambda step: noise, exits))  # fmt: skip
        return forcing.bidirectional(self.teacher, x, x.new_zeros(x.shape[:2]), text).mean()


VIDEO = [
    name for name in stages()
    if issubclass(stage_class({"stage": {"class": name}}), Stage) and name != "ARDiffusion"
]  # fmt: skip


def test_what_trains_nothing_says_so():
    with pytest.raises(ValueError, match="trains nothing"):
        asked("ARDiffusion")


@pytest.mark.parametrize("name", [*VIDEO, f"{__name__}.TeacherForced", f"{__name__}.RolledOut"])
def test_every_stage_is_counted(name):
    """Through memory and bench; what learns in a step has gradient in every case of it."""
    run = asked(name, frames=FRAMES, few_steps=2)
    loads = {role: LOAD for role, held in run.networks.items() if held.like == role}
    items = {i.what: i.bytes for i in of_fit(run, loads, average=False, checkpointing=False)}
    assert items["activations for the backward pass"] > 0 and items["one layer at work"] > 0
    learn = set()
    for roles, cases in run.steps.items():
        learn |= set(roles)
        assert sum(case.probability for case in cases) == pytest.approx(1)
        assert all(any(c.backward == 2 for c in case.calls[r]) for case in cases for r in roles)
        assert work(run, roles).operations > 0
    assert learn == {role for role, held in run.networks.items() if held.trained}
    assert f"weights of {' and '.join(r for r in run.networks if r in learn)}, float32" in items


def work(run, roles=("student",)):
    tree = {"network": CONFIG, "clip_shape": LOAD.clip_shape, "precision": "32-true",
            "bench": {"text_tokens": TEXT}}  # fmt: skip
    configs = dict.fromkeys(run.networks, CONFIG)
    done, _ = step_work(Subject(tree, None), run, roles, configs, BATCH, False)
    return sum(done[len(roles) :], Work())


def forward(frames, seen, prompts=1, last=None):
    """Operations of one clip by hand, two a multiply-add: see bench/count.py.

    `last` are the frames that are predicted, and what they see.
    """
    d, operations = WIDTH, 0
    last = last or (frames, seen)
    for queries, pairs in [(frames, seen)] * (LAYERS - 1) + [last]:
        q = queries * GRID
        operations += 4 * frames * GRID * d * d + 4 * q * d * d + 4 * d * pairs * GRID**2
        operations += 4 * q * d * d + 4 * d * q * TEXT + 4 * q * d * FFN
        operations += 4 * prompts * TEXT * d * d
    operations += 8 * 16 * (frames + last[0]) * GRID * d + 2 * frames * (16 * d + 7 * d * d)
    return operations + 2 * prompts * TEXT * (8 * d + d * d)


def memory(name, checkpointing=False):
    run = asked(name, frames=FRAMES, few_steps=2)
    loads = {"student": LOAD, "teacher": LOAD}
    items = of_fit(run, loads, average=False, checkpointing=checkpointing)
    return {item.what: item.bytes for item in items}


def saved(frames, prompts):
    """Bytes of layers' activations, as measured per token and channel."""
    tokens, (of_width, of_ffn) = BATCH * frames * GRID, SAVED[FULL]
    prompt = prompts * BATCH * TEXT * SAVED_TEXT * WIDTH
    return LAYERS * (tokens * (of_width * WIDTH + of_ffn * FFN) + prompt)


def keys_and_values(frames, text=0):
    return 2 * LAYERS * BATCH * (frames * GRID + text) * WIDTH * FULL


def test_a_new_teacher_forced_stage():
    """Six frames a call: clean ones see 1 + 2 + 3, noisy ones their pasts 0 + 1 + 2 and selves."""
    run = asked(f"{__name__}.TeacherForced", frames=FRAMES, few_steps=2)
    one = forward(6, 6 + 6, last=(3, 6))
    assert work(run).operations == pytest.approx(BATCH * one * (3 + 2), rel=1e-12)
    found = memory(f"{__name__}.TeacherForced")
    assert found["activations for the backward pass"] == saved(6, 1)
    assert found["averages of the student, float32"] == FULL * LOAD.parameters
    assert found["weights of teacher, float32"] == FULL * LOAD.parameters
    assert "KV cache" not in found and "pasts kept by each block's graph" not in found


def test_a_new_rollout_stage():
    """A block leaves after one call or two, each as likely; gradient goes through its last."""
    run = asked(f"{__name__}.RolledOut", frames=FRAMES, few_steps=2)
    last = 3 * sum(forward(1, 1 + past) for past in range(3))
    # One of the calls without gradient reads the prompt: the first block's first or its commit.
    early = 0.5 * sum(forward(1, 1 + past, prompts=0) for past in range(3))
    commits = forward(1, 1, 0, (0, 0)) + forward(1, 2, 0, (0, 0)) + forward(1, 1) - forward(1, 1, 0)
    judged = 2 * forward(3, 9)  # a frozen network: its input's gradient alone
    operations = last + early + commits + judged
    assert work(run).operations == pytest.approx(BATCH * operations, rel=1e-12)
    found = memory(f"{__name__}.RolledOut")
    assert found["KV cache"] == keys_and_values(2, TEXT)
    assert found["pasts kept by each block's graph"] == keys_and_values(0 + 1 + 2)
    assert found["activations for the backward pass"] == saved(3, 3) + saved(3, 1)
    assert "pasts kept by each block's graph" not in memory(
        f"{__name__}.RolledOut", checkpointing=True
    )


# -- the counting network ------------------------------------------------------------------------


def test_a_tally_counts_the_mask_it_was_given_and_what_the_cache_holds():
    net = Tally("student")
    x, t, text = torch.zeros(2, 3, 1, 1, 1), torch.zeros(2, 3), torch.zeros(2, 1, 1)
    cache, frames = net.new_cache(), torch.arange(3)
    with torch.no_grad():
        net(x, t, text, frames=frames, cache=cache, write_cache=True)
        net(x, t, text, frames=frames, cache=cache, visible=torch.eye(3, dtype=torch.bool))
    net(x, t, text, frames=frames, cache=cache).sum().backward()
    first, second, third = net.calls
    assert (first.seen, first.cached, first.held, first.writes) == (9, 0, 6, True)
    assert (second.seen, second.cached, second.reads_prompt) == (3 + 9, 3, False)
    assert (third.seen, third.backward, third.reads_prompt) == (9 + 9, 2, True)
    del cache
    net(x.requires_grad_(), t, text, frames=frames)
    assert (net.calls[-1].held, net.calls[-1].prompts) == (0, 0), "nobody holds it any more"
    net.requires_grad_(False)
    net(x, t, text, frames=frames)
    assert net.calls[-1].backward == 1


def test_a_tally_reads_prompts_when_wan_does():
    """Both remember a prompt without gradient only, and know it by its tensor."""
    real, read = network(1), []
    real.blocks[0].cross_attention_kv = lambda embedded, kept=real.blocks[0].cross_attention_kv: (
        read.append(True) or kept(embedded)
    )
    tally = Tally("student")
    texts = [torch.zeros(1, 3, 8), torch.zeros(1, 3, 8)]
    x, t, frames = torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1), torch.arange(1)
    caches = real.new_cache(), tally.new_cache()
    for text, gradient in zip([0, 0, 0, 1, 1], [True, False, False, True, False], strict=True):
        before = len(read)
        with torch.set_grad_enabled(gradient):
            for net, cache in zip((real, tally), caches, strict=True):
                net(x, t, texts[text], frames=frames, cache=cache)
        assert tally.calls[-1].reads_prompt == (len(read) > before)


def test_choices_are_enumerated_even_if_they_depend_on_each_other():
    def run(choose):
        first = choose("first", 2)
        assert choose("first", 2) == first, "one draw for the whole step"
        return (first, choose("second", 3)) if first else (first,)

    found = list(outcomes(run))
    assert [result for _, result in found] == [(0,), (1, 0), (1, 1), (1, 2)]
    assert [p for p, _ in found] == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])


def test_of_many_outcomes_some_evenly_spread_are_tried():
    found = [value for _, value in outcomes(lambda choose: choose("time", 1000))]
    assert len(found) == MOST and found[0] == 0 and found[-1] == 1000 * (MOST - 1) // MOST


def test_a_field_that_nobody_knows_is_refused_with_its_name(monkeypatch):
    monkeypatch.setattr(TeacherForced, "fields", ("latents", "text", "camera"))
    with pytest.raises(ValueError, match="'camera'"):
        asked(f"{__name__}.TeacherForced", frames=FRAMES)
