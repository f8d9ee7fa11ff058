"""Every number that a recipe can set has a range, which its check refuses to leave.

What can be set is asked of the signatures: those to which the checks of all recipes bind, at every
scale, and those of all stages and networks.
"""

import math
from importlib import import_module
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.launch.execute import verb_module
from experiments.launch.stages import given_to, stage_class
from experiments.runs import signature
from experiments.runs.files import load
from experiments.runs.recipe import Library, Resolver, parse_settings, recipes, resolve
from experiments.runs.signature import bind, settable
from lightning_modules import networks, ranges, stages
from lightning_modules.ranges import is_restricted, range_in_words

TYPES = {name: kind for name, kind in vars(ranges).items() if is_restricted(kind)}
INF, NAN = math.inf, math.nan
# name: (what it contains, what it does not)
EDGES = {
    "Finite": ([-1e300, 0, 1e300], [INF, -INF]),
    "Positive": ([5e-324, 1], [0, -1e-9, INF]),
    "NonNegative": ([0, 1e300], [-5e-324, INF]),
    "UnitInterval": ([0, 1], [-1e-9, 1.0000001]),
    "NoiseLevel": ([1e-9, 1], [0, 1.0000001]),
    "Percent": ([0, 100], [-1e-9, 100.1]),
    "Decay": ([0, 0.9999], [-1e-9, 1, 1.5]),
    "Seconds": ([0.1, 31_536_000], [0, -1, 31_536_001, INF]),
    "PositiveInt": ([1, 10**9], [0, -1]),
    "NonNegativeInt": ([0, 10**9], [-1]),
    "SolverSteps": ([1, 10_000], [0, 10_001]),
    "FrameRate": ([1, 1000], [0, 1001]),
    "WorkerCount": ([0, 1024], [-1, 1025]),
    "DeviceCount": ([1, 65_536], [0, 65_537]),
    "ZeroStage": ([1, 3], [0, 4]),
    "Seed": ([0, 2**63 - 1], [-1, 2**63]),
}
INSIDE = [(name, value) for name, (inside, _) in EDGES.items() for value in inside]
OUTSIDE = [(name, value) for name, (_, outside) in EDGES.items() for value in outside]


def taking(kind):
    def target(value): ...

    target.__annotations__ = {"value": kind}
    return target


TARGETS = {name: taking(kind) for name, kind in TYPES.items()}


def bound(name, value):
    return bind(TARGETS[name], {"value": value}, section="section")["value"]


# -- the types ------------------------------------------------------------------------------------


def test_every_range_has_its_edges_here():
    assert {id(TYPES[name]) for name in EDGES} == {id(kind) for kind in TYPES.values()}


@pytest.mark.parametrize(("name", "value"), INSIDE)
def test_what_is_in_a_range_is_bound_as_a_plain_number(name, value):
    found = bound(name, value)
    assert found == value and type(found) is TYPES[name]._type


@pytest.mark.parametrize(("name", "value"), OUTSIDE)
def test_what_is_not_is_refused_with_the_range_in_words(name, value):
    with pytest.raises(ValueError) as refused:
        bound(name, value)
    assert str(refused.value) == f"section.value: {value!r} must be {range_in_words(TYPES[name])}"


WRONG = st.one_of(
    st.text(), st.none(), st.booleans(), st.sampled_from(["1", "010", "1e3", "0.5", "true", NAN]),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(), st.integers(), max_size=1),
)  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
@given(value=WRONG)
def test_nothing_but_numbers_is_a_number(name, value):
    with pytest.raises(ValueError, match="^section.value: "):
        bound(name, value)


@pytest.mark.parametrize("name", [name for name, kind in TYPES.items() if kind._type is int])
def test_a_whole_number_is_written_as_one(name):
    with pytest.raises(ValueError, match="must be a whole number at"):
        bound(name, 1.0)


def test_ranges_read_well():
    assert range_in_words(ranges.Decay) == "at least 0 and below 1"
    assert range_in_words(ranges.PositiveInt) == "at least 1"
    assert range_in_words(ranges.Finite) == "finite"


# -- all that can be set --------------------------------------------------------------------------


def asked_by_the_checks() -> dict[str, Any]:
    """Every annotation to which a check of ours binds, by class or function and parameter."""
    found = {}

    def recording(target, given=()):
        parameters = settable(target, given)
        title = f"{target.__module__}.{target.__qualname__}"
        found.update({f"{title}.{name}": each.annotation for name, each in parameters.items()})
        return parameters

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signature, "settable", recording)
        for scale in (path.stem for path in Library().scales.glob("*.yaml")):
            if "extends" in load(Library().scales, scale):
                continue  # other numbers for the same settings
            resolver = Resolver(scale)
            for name in recipes():
                try:
                    run = resolver.resolve(name)
                except ValueError:
                    continue  # a recipe of another world
                verb_module(run.verb).check(run.recipe)
        for name in stages():
            kind = stage_class({"stage": {"class": name}})
            recording(kind, given_to(kind))
        for home in networks.classes().values():
            module, _, name = home.rpartition(".")
            recording(getattr(import_module(module), name))
    return found


def has_no_range(annotation) -> bool:
    """Whether a number without a range, or an untyped value, is part of a type."""
    parts = get_args(annotation)
    return any(map(has_no_range, parts)) or (
        not is_restricted(annotation) and annotation in (int, float, complex, Any)
    )


def test_every_number_that_a_recipe_can_set_has_a_range():
    asked = asked_by_the_checks()
    sections = {name for name, kind in asked.items() if kind == dict[str, Any]}
    assert [name for name in asked if name not in sections and has_no_range(asked[name])] == []
    assert len(asked) > 100 and sum(map(is_restricted, asked.values())) > 60
    # A section within a section has a signature of its own, which is among those asked.
    titles = {name.rpartition(".")[2].lower(): name for name in sections}
    others = {"bench", "student_with"}  # arguments of other libraries' encoders; of a network
    of_clips = {"law", "world", "latents", "text", "limits", "video", "trajectory", "room"}
    assert set(titles) - others == of_clips | {"stride"}


def test_a_number_without_a_range_is_noticed():
    bare = (int, float, int | None, list[float], tuple[float, float], str | int, dict[str, Any])
    assert all(map(has_no_range, bare))
    assert not any(map(has_no_range, (bool, str, *TYPES.values(), ranges.Betas, ranges.Blocks)))


# -- at the command line ---------------------------------------------------------------------------

REFUSED = [
    ("sample", "shift=0", "sample.shift: 0 must be above 0 and finite"),
    ("sample", "shift=-5", "sample.shift: -5 must be above 0"),
    ("sample", "sampling.guidance=.nan", "sample.guidance: nan must be at least 0 and finite"),
    ("sample", "few_steps=0", "sample.few_steps: 0 must be at least 1 and at most 10000"),
    ("sample", "sampling.batch=0", "sample.batch: 0 must be at least 1"),
    ("sample", "sampling.count=0", "sample.count: 0 must be at least 1"),
    ("sample", "sampling.count=-1", "sample.count: -1 must be at least 1"),
    ("sample", "sample.context_t=2", "sample.context_t: 2 must be at least 0 and at most 1"),
    ("sample", "clip_shape=[8, 16, 4]", "sample.clip_shape: .* a list of 4, each a whole number"),
    ("sample", "launch.workers=-1", "launch.workers: -1 must be at least 0"),
    ("sample", "launch.timeout_s=.inf", "launch.timeout_s: inf must be above 0 and at most"),
    ("sample", "launch.accelerator=gppu", "launch.accelerator: 'gppu' must be one of auto, cpu"),
    ("sample", "launch.log_every=0", "launch.log_every: 0 must be at least 1"),
    ("sample", "launch.check_memory=no", "launch.check_memory: 'no' must be true or false"),
    ("stage1_teacher_forcing", "stage.betas=[0.9]", "stage.betas: .* a list of 2, each"),
    ("stage1_teacher_forcing", "stage.betas=[0.9, 1.0]", "each a number at least 0 and below 1"),
    ("stage1_teacher_forcing", "stages.stage1.batch=0", "fit.batch: 0 must be at least 1"),
    (
        "stage1_teacher_forcing",
        "stages.stage1.ema_decay=1.0",
        "fit.ema_decay: 1.0 must be at least 0 and below 1",
    ),
    ("stage1_teacher_forcing", "stages.stage1.ema_decay=1.5", "fit.ema_decay: 1.5 must be"),
    (
        "stage1_teacher_forcing",
        "stages.stage1.learning_rate=-1e-4",
        "stage.learning_rate: -0.0001 must be at least 0",
    ),
    ("stage1_teacher_forcing", "fit.ema_start=-5", "fit.ema_start: -5 must be at least 0"),
    ("stage1_teacher_forcing", "stages.stage1.steps=010", "fit.steps: '010' must be a whole"),
    ("stage1_teacher_forcing", "stages.stage1.steps=1_000", "fit.steps: '1_000' must be a whole"),
    ("stage1_teacher_forcing", "blocks=4", "blocks: 4 cannot cover 9 frames"),
    ("stage1_teacher_forcing", "fit={}", "fit.steps is missing"),
    ("stage1_teacher_forcing", "stage={}", "stage.class: there is no stage None"),
    ("stage2_causal_cd", "stage.decay=1", "stage.decay: 1 must be at least 0 and below 1"),
    ("stage3_asymmetric_dmd", "stage.t_min=0.99", "stage.t_min: 0.99 must be below stage.t_max"),
    ("stage3_asymmetric_dmd", "stage.critic_steps=0", "stage.critic_steps: 0 must be at least 1"),
    ("causal_pairs", "blocks=4", "blocks: 4 cannot cover 9 frames"),
    ("causal_pairs", "pairs.past=causl", "pairs.past: 'causl' must be one of causal, bidir"),
    ("causal_pairs", "stages.pairs.count=0", "pairs.count: 0 must be at least 1"),
    ("base", "network.num_layers=0", "network.num_layers: 0 must be at least 1"),
    ("clips", "world.turn=2", "curate.world.turn: 2 must be at least 0 and at most 1"),
    ("clips", "text.dim=0", "curate.text.dim: 0 must be at least 1"),
    ("clips", "text.words=[no, 1]", "curate.text.words: .* must be a list, each text"),
    ("clips", "negative_prompt=1.10", "curate.negative_prompt: 1.1 must be text; put it in quotes"),
    ("clips", "curate.source=[a]", "curate.source: .* is none of"),
    ("probe", "stage.min_accuracy=2", "stage.min_accuracy: 2 must be at least 0 and at most 1"),
    ("score", "scoring.clips=0", "score.clips: 0 must be at least 1"),
]


@pytest.mark.parametrize(("recipe", "word", "message"), REFUSED)
def test_a_value_out_of_its_range_is_refused_by_the_check(recipe, word, message):
    run = resolve(recipe, "tiny", parse_settings([word]))
    with pytest.raises(ValueError, match=message):
        verb_module(run.verb).check(run.recipe)


def test_consistency_needs_a_pair():
    words = ["stage.intervals=1", "stage.terminal_pair=false"]
    run = resolve("stage2_causal_cd", "tiny", parse_settings(words))
    with pytest.raises(ValueError, match="stage.intervals: one link is only the terminal pair"):
        verb_module("fit").check(run.recipe)


@pytest.mark.parametrize("verb", ["curate", "fit", "pairs", "sample", "score"])
def test_a_recipe_without_its_section_is_refused(verb):
    name = recipes(verb=verb)[0]
    recipe = dict(resolve(name, "switching" if name.startswith("closed") else "tiny").recipe)
    del recipe[verb]
    with pytest.raises(ValueError, match=verb):
        verb_module(verb).check(recipe)
