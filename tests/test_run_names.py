"""Recipes may be written otherwise; the runs that they mean keep their names.

A name hashes the resolved recipe, and finished runs are found by it. `fixtures/run_names.json`
holds the names of every run of the sweeps as commit 8879c7c resolved them:
`{"<sweep> <scale> <seeds>": {recipe: hashes}}`. The tiny scale is not among them: its world has
changed, so its runs are others.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.runs.recipe import Run, run_name
from sweeps.plan.graph import load_sweep

FILE = Path(__file__).parent / "fixtures" / "run_names.json"
NAMES = {
    sweep: {f"{recipe}-{hash}" for recipe, hashes in by_recipe.items() for hash in hashes.split()}
    for sweep, by_recipe in json.loads(FILE.read_text()).items()
}

NEW = [("schedule", "constant"), ("warmup_steps", 0), ("steps_per_link", 1)]


def old_name(run: Run) -> str:
    """The name that 8879c7c gave a run.

    Stages have new settings since, at values that mean what was done without them; the given models
    and the AR teacher are sampled with the 48 steps of the pairs, then 50; at Wan's scale the KV
    cache is updated in the next block's first call, then in one of its own.
    """
    recipe = dict(run.recipe)
    old = {role: old_name(need) for role, need in run.needs.items()}
    given = {role: name for role, name in recipe["needs"].items() if role not in run.needs}
    recipe["needs"] = {**given, **old}
    if recipe.get("sampler") in ("bidirectional_ode", "autoregressive_ode"):
        recipe["sample"] = {**recipe["sample"], "intervals": 50}
    if recipe.get("sample", {}).get("commit") == "fused":
        recipe["sample"] = {**recipe["sample"], "commit": "separate"}
    recipe.update({key: _without_new(recipe[key]) for key in ("curate", "score") if key in recipe})
    if "stage" in recipe:
        stage = recipe["stage"].items()
        recipe["stage"] = {key: value for key, value in stage if (key, value) not in NEW}
    return run_name(recipe)


def _without_new(section: dict[str, Any]) -> dict[str, Any]:
    """Of VBench's protocol: several videos of a prompt, and the wording that they are judged by."""
    new = ("videos", "flickering_videos", "wording")
    return {key: value for key, value in section.items() if key not in new}


@pytest.mark.parametrize("words", NAMES)
def test_names_are_those_of_the_commit_that_began_the_runs(words):
    sweep, scale, seeds = words.split()
    runs = load_sweep(sweep, scale, [int(seed) for seed in seeds.split(",")]).runs
    assert {old_name(run) for run in runs.values()} == NAMES[words]
    assert len(runs) == len(NAMES[words])
