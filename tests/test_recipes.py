"""Layers, edges, names and refusals of recipes; and that every recipe of ours is a good one."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.runs.config import flatten
from experiments.runs.folder import RunFolder, read_resolved
from experiments.runs.recipe import Library, parse_settings, recipes, resolve
from lightning_modules import stages

FIXTURES = Path(__file__).parent / "fixtures"
LIBRARY = Library(FIXTURES / "recipes", FIXTURES / "scale")
OURS = Library()
SCALES = sorted(path.stem for path in OURS.scales.glob("*.yaml"))


def fixture(name, *words, scale="tiny", library=LIBRARY):
    return resolve(name, scale, parse_settings(words), library)


def own(tmp_path, **texts):
    """The fixture library with some recipes replaced or added."""
    folder = Path(shutil.copytree(FIXTURES / "recipes", tmp_path / "recipes", dirs_exist_ok=True))
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return Library(folder, LIBRARY.scales)


def test_layers_and_what_is_kept():
    run = fixture("left", "steps=7", "blocks=chunkwise")
    assert run.recipe["fit"] == {
        "steps": 7, "step_s": 0.0, "act": "train", "blocks": "chunkwise"
    }  # fmt: skip
    assert set(run.recipe) == {"recipe", "verb", "seed", "blocks", "needs", "fit", "launch"}
    assert run.recipe["needs"] == {"student": run.needs["student"].name}
    assert run.expected_s == pytest.approx(2 * 7 / 3), (
        "in proportion to the steps of which the scale speaks"
    )
    assert fixture("left").expected_s == 2


def test_a_hint_is_of_the_steps_of_the_scale_that_states_it(tmp_path):
    shutil.copytree(LIBRARY.scales, tmp_path / "scale")
    (tmp_path / "scale" / "mine.yaml").write_text("extends: tiny\nsteps: 6")
    library = Library(LIBRARY.recipes, tmp_path / "scale")
    assert resolve("left", "mine", library=library).expected_s == 4


def test_scale_settings_reach_the_needs_and_own_settings_do_not():
    plain, wide = fixture("join"), fixture("join", "steps=9")
    assert [run.recipe["fit"]["steps"] for run in wide.closure().values()] == [9, 9, 9]
    assert fixture("join", "few_steps=1").needs["student"].name == plain.needs["student"].name
    seeded = fixture("join", "seed=3")
    assert seeded.needs["student"].recipe["seed"] == 3
    base = seeded.needs["student"].needs["student"]
    assert base.recipe["seed"] == 0, "a seed that the recipe fixes is shared by all seeds"
    assert base.name == plain.needs["student"].needs["student"].name


def test_edges_pass_settings_and_can_be_replaced():
    run = fixture("join", "needs.student.blocks=chunkwise")
    assert run.needs["student"].recipe["blocks"] == "chunkwise"
    run = fixture("join", "needs.student={recipe: right, act: print}")
    assert run.needs["student"].recipe["fit"]["act"] == "print"
    run = fixture("join", "needs.student={folder: models/one}")
    assert run.recipe["needs"] == {"student": "models/one"} and not run.needs
    assert fixture("join", "needs.student={folder: here}").recipe["needs"]["student"] == "./here"
    assert fixture("left", scale="other").recipe["needs"] == {"student": "some/model"}
    assert fixture("left", "base={folder: x/y}").recipe["needs"] == {"student": "x/y"}


def test_launch_and_order_of_keys_do_not_change_the_name(tmp_path):
    plain = fixture("join")
    assert fixture("join", "launch.workers=8").name == plain.name
    assert fixture("join", "launch.workers=8").recipe["launch"]["workers"] == 8
    text = (LIBRARY.recipes / "join.yaml").read_text().splitlines()
    turned = own(tmp_path, join="\n".join(reversed(text)))
    assert fixture("join", library=turned).name == plain.name


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(["steps", "few_steps", "seed"]), st.integers(0, 4)))
def test_equal_content_equal_name(chosen):
    """The name follows from the content and from nothing else, whoever asks and how."""
    full = {"steps": 3, "few_steps": 4, "seed": 0} | chosen
    partial = {key: value for key, value in full.items() if key in chosen}
    first, second = (resolve("judge", "tiny", _under(s), LIBRARY) for s in (full, partial))
    assert first.name == second.name
    assert (first.name == resolve("judge", "tiny", {}, LIBRARY).name) == (
        full == {"steps": 3, "few_steps": 4, "seed": 0}
    )


def _under(chosen):
    """Settings of a score; `few_steps` belongs to the run behind it."""
    return {
        (f"needs.samples.{key}" if key == "few_steps" else key): value
        for key, value in chosen.items()
    }


def test_unknown_names_are_answered_with_those_that_exist():
    with pytest.raises(FileNotFoundError, match="did you mean 'join'.*base, join"):
        fixture("jion")
    with pytest.raises(FileNotFoundError, match="did you mean 'tiny'"):
        fixture("join", scale="tinny")


def test_the_resolved_recipe_names_the_same_run(tmp_path):
    run = fixture("join", "few_steps=1")
    folder = RunFolder.create(run, tmp_path / "runs")
    assert read_resolved(folder.path / "recipe.yaml") == run.recipe
    elsewhere = tmp_path / "mine.yaml"
    shutil.copy(folder.path / "recipe.yaml", elsewhere)
    assert RunFolder.of_recipe(elsewhere, tmp_path / "runs").name == run.name


def test_flatten_keeps_the_description_of_a_need_whole():
    nested = {
        "a": {"b": {"c": 1}},
        "needs": {"x": {"recipe": "r", "y": 2}},
        "base": {"folder": "f"},
    }
    assert flatten(nested) == {
        "a.b.c": 1, "needs.x": {"recipe": "r", "y": 2}, "base": {"folder": "f"}
    }  # fmt: skip


OF_ONE_WORLD = {"probe", "base", "real_score", "continued_base"}
OF_ONE_WORLD |= {*recipes(OURS, "curate"), *recipes(OURS, "score")}
"""Making clips and judging them is a world's own affair, a law is a real score that nobody trains,
and Wan's weights are given; what lies between is for all of them."""


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", recipes(OURS))
def test_every_recipe_of_ours_resolves_at_every_scale_and_passes_its_check(name, scale):
    from experiments.launch.execute import verb_module

    try:
        run = resolve(name, scale)
    except ValueError as error:
        assert name in OF_ONE_WORLD and "not found" in str(error), error
        return
    verb_module(run.verb).check(run.recipe)


@pytest.mark.parametrize("name", recipes(OURS))
def test_every_recipe_of_ours_is_for_some_scale(name):
    missing = []
    for scale in SCALES:
        try:
            resolve(name, scale)
        except ValueError as error:
            missing.append(str(error))
    assert len(missing) < len(SCALES), missing


def test_every_stage_has_a_recipe():
    named = {resolve(name, "tiny").recipe["stage"]["class"] for name in recipes(OURS, "fit")}
    assert named == set(stages())


def test_the_alternative_stage_1_differs_in_nothing_but_its_class():
    one, other = (
        resolve(f"stage1_{kind}_forcing", "tiny").recipe for kind in ("teacher", "diffusion")
    )
    other = other | {"recipe": one["recipe"], "stage": other["stage"] | {"class": "TeacherForcing"}}
    assert other == one


def test_a_base_that_is_trained_on_repeats_neither_its_noise_nor_its_order_of_clips():
    longer = resolve("continued_base", "tiny")
    base = longer.needs["student"]
    assert base.recipe["recipe"] == "base" and longer.recipe["seed"] != base.recipe["seed"]
    assert longer.recipe["stage"]["class"] == base.recipe["stage"]["class"] == "Bidirectional"


@pytest.mark.parametrize("name", recipes(OURS))
def test_recipes_of_ours_are_short(name):
    lines = (OURS.recipes / f"{name}.yaml").read_text().splitlines()
    assert len(lines) <= 31 and max(map(len, lines)) <= 110, os.fspath(name)


def test_an_initialisation_that_adds_no_setting_has_a_recipe_of_at_most_twelve_lines():
    for kind in ("ar_diffusion", "self_forcing_ode", "causal_ode", "causal_dmd"):
        assert len((OURS.recipes / f"stage2_{kind}.yaml").read_text().splitlines()) <= 12


# -- a recipe on top of another -------------------------------------------------------------------

UNDER = """verb: fit
from: part
seed: 0
needs: {data: {recipe: left}, student: "${base}"}
fit: {steps: "${from.steps}", act: train, of: [1, "a ${ from.word }"]}
"""


def resolved(tmp_path, text, under=UNDER):
    library = own(tmp_path, under=under, top=text)
    parts = "part: {steps: 1, word: b}\nother: {steps: 2, word: c}\n"
    scales = shutil.copytree(LIBRARY.scales, tmp_path / "scale", dirs_exist_ok=True)
    (scales / "tiny.yaml").write_text((LIBRARY.scales / "tiny.yaml").read_text() + parts)
    return fixture("top", library=Library(library.recipes, scales))


def test_a_recipe_on_top_of_another_says_only_what_differs(tmp_path):
    run = resolved(tmp_path, "extends: under\nfrom: other\nfit: {act: print, more: 3}\n")
    assert run.recipe["fit"] == {"steps": 2, "act": "print", "of": [1, "a c"], "more": 3}
    assert set(run.recipe["needs"]) == {"data", "student"} and run.recipe["seed"] == 0
    assert resolved(tmp_path, "extends: under\n").recipe["fit"]["steps"] == 1
    run = resolved(tmp_path, "extends: under\nneeds: {data: {folder: a/b}, student: null}\n")
    assert run.recipe["needs"] == {"data": "a/b"}, "a need is replaced as a whole, or taken out"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: undre\n", "undre.yaml: there is no 'undre'; did you mean 'under'"),
        ("extends: top\n", "top.yaml: files extend each other in a circle"),
        ("extends: under\nsed: 1\n", "top.yaml: nothing reads the key 'sed'; did you mean 'seed'"),
        ("extends: under\nfrom: prat\n", "top.yaml: fit.steps: .*prat.*did you mean 'part.steps'"),
        ("extends: under\nfrom: null\n", "top.yaml: from: None is no part of the scale"),
        ("verb: fit\nseed: 0\nfrom: part\n", "top.yaml: from: part: nothing in the recipe refers"),
    ],
)
def test_a_recipe_that_extends_wrongly_is_refused(tmp_path, text, message):
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}"):
        resolved(tmp_path, text)


def test_a_key_that_another_scale_has_names_that_scale():
    with pytest.raises(ValueError, match=r"scales that have 'gaussian_world': gaussian, switching"):
        resolve("closed_form_clips", "tiny")


def test_a_path_as_the_name_of_a_need_says_how_paths_are_given():
    said = r"needs.student: '/nowhere' is no recipe's name; .*'needs.student=\{folder: /nowhere\}'"
    with pytest.raises(ValueError, match=said):
        resolve("stage2_causal_cd", "tiny", {"needs.student": "/nowhere"})
