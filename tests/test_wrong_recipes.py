"""Wrong recipes, scales and settings are refused with the file, the key and the cure."""

import shutil

import pytest
from test_recipes import LIBRARY, fixture, own

from experiments.runs.recipe import Library


@pytest.mark.parametrize(
    ("name", "word", "message"),
    [
        ("join", "few_stpes=2", "'few_stpes'.*join.yaml.*did you mean 'few_steps'"),
        ("join", "fit.act.x=2", "unknown key 'fit.act.x'"),
        ("left", "stpes=2", "did you mean 'steps'"),
        ("join", "needs.studnet.x=2", "no need 'studnet'; did you mean 'student'"),
        ("join", "needs.student.blocsk=2", "'blocsk'.*left.yaml.*blocks.*needs of 'join'"),
        ("join", "needs.student={recpie: left}", "must name a recipe or a folder"),
        ("join", "few_steps", "written key=value"),
        ("join", "seed=abc", "join.yaml: seed: 'abc' is not a number"),
        ("join", "seed=-1", "seed: -1 is not a number such as 0"),
        ("join", "few_steps=[1", "not readable as YAML"),
        ("join", "seed=010", "join.yaml: seed: '010' is not a number"),
        ("join", "seed=9223372036854775808", "seed: 9223372036854775808 is not a number"),
        ("join", "fit.act[0]=2", r"fit.act\[0\]: an entry of a list is not set alone.* fit.act="),
        ("join", "fit.act.0=2", "fit.act.0: an entry of a list is not set alone"),
        ("join", "needs.student.fit.act[0]=2", "an entry of a list is not set alone"),
        ("join", "fit=3", "fit: 3 is no section of settings; .* such as fit.steps="),
        ("join", "fit=null", "fit: None is no section"),
        ("join", "launch=3", "launch: 3 is no section .* such as launch.interval="),
        ("join", "fit=${seed}", "join.yaml: fit: 0 is no section of settings"),
        ("join", "launch.cost_s=3", "launch.cost_s: 3 is no section"),
        ("join", "launch.cost_s.base=soon", "launch.cost_s.base: 'soon' is no number of seconds"),
        ("join", "launch.cost_s.base=-1", "launch.cost_s.base: -1 is no number of seconds"),
        ("join", "launch.cost_s.base=.nan", "launch.cost_s.base: nan is no number of seconds"),
        ("join", "fit.step_s=${nope}", "join.yaml: fit.step_s: .*'nope' not found"),
        ("join", "steps=${steps}", "fit.steps: .*Recursive interpolation"),
        ("join", "steps=${steps", "fit.steps: .*no viable alternative"),
        (
            "join",
            "needs.student={recipe: [a]}",
            "not the text that names a recipe",
        ),
        ("join", "needs.student={folder: null}", "needs.student: None is not the text that names"),
        ("join", "base={folder: '${steps}'}", "needs.student: 3 is not the text .* in quotes"),
    ],
)
def test_bad_settings_are_refused_with_the_nearest_name(name, word, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        fixture(name, word)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("verb: fit\nsed: 0\n", "nothing reads the key 'sed'; did you mean 'seed'"),
        ("verb: fti\nseed: 0\n", "verb is 'fti'"),
        ("verb: fit\n", "'seed' is missing"),
        (
            "verb: fit\nseed: 0\nfit: {steps: '${stesp}'}\n",
            "fit.steps:.*stesp.*did you mean 'steps'",
        ),
        ("verb: fit\nseed: 0\nfit: {steps: '???'}\n", "bad.yaml: fit"),
        ("verb: fit\nseed: 0\nverb: fit\n", "line 3: .*'verb' is repeated, see line 1"),
        ("verb: fit\nseed: 0\n\tfit: 1\n", "line 3: not readable as YAML.*indent with spaces"),
        ("verb: fit\nseed: 0\nfit: 3\n", "fit: 3 is no section of settings"),
        ("verb: fit\nseed: 0\nneeds: [x]\n", "needs: .* is no section of settings"),
        ("verb: fit\nseed: 0\nlaunch: 3\n", "launch: 3 is no section of settings"),
        ("verb: fit\nseed: 0\nlaunch: {slurm: {default: 3}}\n", "launch.slurm.default: 3 is no"),
        ("- 1\n", "mapping"),
        ("verb: fit\nseed: 0\nneeds: {x: {recipe: bad}}\n", "circle: bad -> bad"),
        ("verb: fit\nseed: 0\nneeds: {x: {folder: a/b, y: 1}}\n", "takes no settings"),
    ],
)
def test_bad_recipes_are_refused_with_their_file(tmp_path, text, message):
    with pytest.raises(ValueError, match=f"(?s)bad.*{message}|{message}"):
        fixture("bad", library=own(tmp_path, bad=text))


@pytest.mark.parametrize("text", ["1.10", "010", "1e3", "2026", "12:00"])
def test_a_folder_is_the_one_that_is_written(text):
    assert fixture("left", f"base={{folder: {text}}}").recipe["needs"] == {"student": f"./{text}"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("launch: 3", "mine.yaml: launch: 3 is no section"),
        ("launch: {slurm: 3}", "mine.yaml: launch.slurm: 3 is no section"),
        ("extends: tiny\nlaunch: 3", "mine.yaml: launch: 3 is no section of settings"),
        ("extends: tiny\nseed: 0\nseed: 1", "mine.yaml, line 3: .*'seed' is repeated, see line 2"),
        ("- 1", "mine.yaml: must hold a mapping"),
    ],
)
def test_bad_scales_are_refused_with_their_file(tmp_path, text, message):
    scales = shutil.copytree(LIBRARY.scales, tmp_path / "scale")
    (scales / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        fixture("base", scale="mine", library=Library(LIBRARY.recipes, scales))
