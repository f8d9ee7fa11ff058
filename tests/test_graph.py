"""Sweeps as graphs: what is shared, what is not, in which order, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.runs.recipe import Library, resolve
from sweeps.plan.costs import Costs, devices_of, duration, forecast, remaining, urgency
from sweeps.plan.graph import load_sweep, sweeps

FIXTURES = Path(__file__).parent / "fixtures"
LIBRARY = Library(FIXTURES / "recipes", FIXTURES / "scale")
DIAMOND = FIXTURES / "diamond.yaml"


def diamond(seeds=(0,), **changed):
    return load_sweep(DIAMOND, "tiny", seeds, LIBRARY, changed)


def test_cells_and_sharing():
    sweep = diamond()
    assert [(c.labels["init"], c.labels["few_steps"]) for c in sweep.cells] == [
        ("left", 1), ("left", 2), ("right", 1), ("right", 2)
    ]  # fmt: skip
    kinds = [run.recipe["recipe"] for run in sweep.runs.values()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "base": 1, "left": 1, "right": 1, "join": 4, "judge": 6
    }  # fmt: skip
    assert sweep.title and sweep.table == {"heads": {"init": "way"}}


def test_seeds_share_what_fixes_its_own():
    one, two = diamond([0]), diamond([0, 1])
    assert len(two.runs) == 2 * len(one.runs) - 1, "all but the base belong to one seed"
    assert set(one.runs) < set(two.runs)


SETTINGS = st.fixed_dictionaries({}, optional={"steps": st.integers(1, 3), "step_s": st.just(0.5)})


@settings(max_examples=25, deadline=None)
@given(SETTINGS, st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True))
def test_every_graph_is_in_order_and_names_follow_content(changed, seeds):
    sweep = diamond(seeds, **changed)
    seen = set()
    for name, run in sweep.runs.items():
        assert name == run.name and all(need.name in seen for need in run.needs.values())
        assert run.recipe["needs"] == {role: need.name for role, need in run.needs.items()}
        seen.add(name)
    contents = {json.dumps(r.recipe, sort_keys=True) for r in sweep.runs.values()}
    assert len(contents) == len(sweep.runs), "two names for one content, or one for two"
    again = diamond(reversed(seeds), **changed)
    assert set(again.runs) == set(sweep.runs)


def test_changing_one_setting_renames_what_depends_on_it_and_nothing_else(tmp_path):
    plain = diamond()
    text = DIAMOND.read_text().replace("few_steps: [1, 2]", "few_steps: [1, 3]")
    (tmp_path / "d.yaml").write_text(text)
    changed = load_sweep(tmp_path / "d.yaml", "tiny", [0], LIBRARY)
    gone = {plain.runs[name].recipe["recipe"] for name in set(plain.runs) - set(changed.runs)}
    assert gone == {"join", "judge"}
    assert len(set(plain.runs) & set(changed.runs)) == 3 + 2 + 2 + 2


def test_dependants_are_all_that_come_after():
    sweep = diamond()
    left = next(name for name in sweep.runs if name.startswith("left"))
    found = sorted(sweep.runs[name].recipe["recipe"] for name in sweep.dependants(left))
    assert found == ["join", "join", "judge", "judge", "judge"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cells:", "cell:", "unknown key 'cell'; did you mean 'cells'"),
        ("title:", "setings: {steps: 3}\ntitle:", "unknown key 'setings'; did you mean 'settings'"),
        ("title:", "sweeps: []\ntitle:", "either 'cells' or 'sweeps'"),
        ("axes:", "axis:", "unknown key 'axis'; did you mean 'axes'"),
        ("${init}", "${inti}", "cell.*inti"),
        ("recipe: judge,", "recipe: jugde,", "runs.after.*did you mean 'judge'"),
        ('few_steps: "${', 'few_stpes: "${', "few_stpes.*did you mean 'few_steps'"),
        ("init: [left, right]", "seed: [1]", "seeds are given"),
        ("init: [left, right]", "init: left", "axes.init: must be a list"),
        ("init: [left, right]", "init: []", "axes.init: must be a list of one value or more"),
        ("init: [left, right]", "init: [left, left]", "the value .left. is repeated"),
        ("few_steps: [1, 2]", "few_steps: [1, 2], foo: [3, 4]", r"axes.foo: no run uses \$\{foo\}"),
        ("axes:", "scales: tiny\n    axes:", r"cells\[0\].scales must be a list"),
        ("axes:", "scales: [tinny]\n    axes:", "no scale 'tinny'; did you mean 'tiny'"),
        ("title:", "settings: 3\ntitle:", "settings: 3 is no section of settings"),
        ("title:", "settings: {launch: 3}\ntitle:", "launch: 3 is no section of settings"),
        ("recipe: judge,", "recipe: [judge],", "must name a recipe"),
        ("recipe: judge,", "recipe: judge, recipe: judge,", "line .*'recipe' is repeated"),
    ],
)
def test_mistakes_in_a_sweep_name_file_and_place(tmp_path, old, new, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(DIAMOND.read_text().replace(old, new))
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s)wrong.yaml.*{message}"):
        load_sweep(path, "tiny", [0], LIBRARY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cells: [3]", r"cells\[0\]: 3 is no mapping"),
        ("cells: [{axes: [a], runs: {x: {recipe: base}}}]", r"cells\[0\].axes: .* no section"),
        ("sweeps: 3", "'sweeps' must be a list"),
        ("sweeps: [3]", r"sweeps\[0\]: 3 is no mapping"),
        (
            "sweeps: [{sweep: smoke, scale: tiny, labels: 3}]",
            r"sweeps\[0\].labels: 3 is no",
        ),
        ("sweeps: [{sweep: HERE, scale: tiny}]", "contain each other in a circle"),
        ("- 3", "a sweep is a mapping"),
        ("table: [a]\ncells: []", "table: .* neither a table's name nor its keys"),
        ("title: 3\ncells: []", "title: 3 is no text; put it in quotes"),
    ],
)
def test_what_is_no_sweep_is_refused(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text.replace("HERE", str(path)))
    with pytest.raises(ValueError, match=f"wrong.yaml.*{message}"):
        load_sweep(path, "tiny", [0], LIBRARY)


def test_unknown_sweep_names_those_that_exist():
    with pytest.raises(FileNotFoundError, match="did you mean 'ablation'.*smoke"):
        load_sweep("ablatoin", "tiny", [0], LIBRARY)
    assert {"ablation", "smoke", "decay", "theory"} <= set(sweeps())


def test_a_sweep_without_a_cell_at_the_scale_names_those_that_have_some(tmp_path):
    (tmp_path / "one.yaml").write_text(
        "cells:\n- {scales: [gaussian, room], runs: {data: {recipe: clips}}}\n"
    )
    with pytest.raises(ValueError, match=r"one.yaml: no cells at the scale tiny; give --scale gau"):
        load_sweep(tmp_path / "one.yaml", "tiny")


def test_a_cell_of_a_scale_is_one_of_those_that_extend_it_too(tmp_path):
    """Such as a user's own: docs/wan.md extends wan1.3b."""
    (tmp_path / "one.yaml").write_text("cells:\n- {scales: [mid], runs: {data: {recipe: base}}}\n")
    scales = {"mid": "extends: tiny", "mine": "extends: mid\nsteps: 5", "odd": "extends: tiny"}
    shutil.copytree(LIBRARY.scales, tmp_path / "scale")
    for name, text in scales.items():
        (tmp_path / "scale" / f"{name}.yaml").write_text(text)
    library = Library(LIBRARY.recipes, tmp_path / "scale")
    for scale in ("mid", "mine"):
        assert len(load_sweep(tmp_path / "one.yaml", scale, [0], library).cells) == 1
    for scale in ("tiny", "odd"):
        with pytest.raises(ValueError, match=f"no cells at the scale {scale}"):
            load_sweep(tmp_path / "one.yaml", scale, [0], library)
    (tmp_path / "scale" / "mid.yaml").write_text("extends: mine")
    with pytest.raises(ValueError, match="circle"):
        load_sweep(tmp_path / "one.yaml", "mine", [0], library)


def test_a_sweep_of_sweeps_has_the_cells_of_all_with_labels_that_tell_them_apart(tmp_path):
    part = f"{{sweep: {DIAMOND}, scale: tiny, labels: {{world: WORLD}}}}"
    parts = ", ".join(part.replace("WORLD", world) for world in ("one", "two"))
    path = tmp_path / "both.yaml"
    path.write_text(f"settings: {{steps: 2}}\nsweeps: [{parts}]")
    both, one = load_sweep(path, "", [0, 1], LIBRARY), diamond([0, 1], steps=2)
    assert [cell.labels["world"] for cell in both.cells] == ["one"] * 8 + ["two"] * 8
    assert set(both.runs) == set(one.runs) and both.cells[3].labels == one.cells[3].labels | {
        "world": "one"
    }
    path.write_text(f"sweeps: [{{sweep: {DIAMOND}}}]")
    alone = load_sweep(path, "tiny", [0, 1], LIBRARY, {"steps": 2})
    assert set(alone.runs) == set(one.runs) and (alone.scale, both.scale) == ("tiny", "")
    path.write_text(f"sweeps: [{part.replace('labels', 'label')}]")
    with pytest.raises(ValueError, match="sweeps.0.: unknown key 'label'; did you mean 'labels'"):
        load_sweep(path, "", [0], LIBRARY)


def test_time_follows_from_the_devices_that_are_set(tmp_path):
    """What one device does in a day, two nodes of four do in three hours."""
    record = {"recipe": "causal_pairs", "scale": "tiny", "device_s": 86_400, "wall_s": 86_400}
    folder = tmp_path / "causal_pairs-00000000"
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "done.json").touch()
    costs = Costs(tmp_path)
    spread = {"launch.nodes": 2, "launch.devices": 4}
    for launch, devices in (({}, 1), (spread, 8)):
        run = resolve("causal_pairs", "tiny", launch)
        assert (devices_of(run), costs.device_s(run)) == (devices, 86_400)
        assert costs.estimate(run) == 86_400 / devices
    costs.learn(run, 100.0)
    assert costs.device_s(run) == 800


def test_a_fit_of_fewer_steps_costs_less_by_the_run_that_is_nearest(tmp_path):
    for number, (steps, seconds) in enumerate(((1000, 110.0), (1000, 90.0), (100, 20.0))):
        folder = tmp_path / f"stage2_causal_cd-0000000{number}"
        folder.mkdir()
        record = {"recipe": "stage2_causal_cd", "scale": "tiny", "device_s": seconds}
        record |= {"progress": {"done": steps, "total": steps, "note": ""}}
        (folder / "record.json").write_text(json.dumps(record))
        (folder / "done.json").touch()
    costs = Costs(tmp_path)
    for steps, seconds in ((1000, 100.0), (2000, 200.0), (500, 50.0), (200, 40.0), (0, 90.0)):
        run = resolve("stage2_causal_cd", "tiny", {"stages.causal_cd.steps": steps})
        assert costs.device_s(run) == pytest.approx(seconds), steps
    costs.learn(resolve("stage2_causal_cd", "tiny", {"stages.causal_cd.steps": 10}), 5.0)
    run = resolve("stage2_causal_cd", "tiny", {"stages.causal_cd.steps": 20})
    assert costs.device_s(run) == 10


def test_costs_come_from_records_then_hints_and_order_the_work(tmp_path):
    sweep = diamond()
    by_recipe = {run.recipe["recipe"]: run for run in reversed(sweep.runs.values())}
    costs = Costs(tmp_path)
    assert costs.estimate(by_recipe["base"]) == 5 and costs.estimate(by_recipe["join"]) is None
    for number, wall in enumerate((10, 30, 20)):
        folder = tmp_path / f"join-0000000{number}"
        folder.mkdir()
        record = {"recipe": "join", "scale": "tiny", "device_s": wall}
        (folder / "record.json").write_text(json.dumps(record))
        (folder / "done.json").touch()
    costs = Costs(tmp_path)
    assert costs.estimate(by_recipe["join"]) == 20
    order = urgency(sweep.runs, costs)
    for run in sweep.runs.values():
        for need in run.needs.values():
            assert order[need.name] >= order[run.name]
    left = [by_recipe["base"], by_recipe["left"], by_recipe["join"]]
    assert remaining(left, {}, sweep.runs, costs, 2) == (27, True), "a chain gains no second worker"
    assert remaining([by_recipe["judge"]], {}, sweep.runs, costs, 2)[1] is False
    assert [duration(s) for s in (None, 5, 75, 3661)] == ["unknown", "0:05", "1:15", "1:01:01"]
    assert forecast(75, True) == "1:15 left" and forecast(75, False) == "at least 1:15 left"
    assert forecast(0, False) == "time left unknown"
