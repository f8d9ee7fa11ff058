"""Memory and work of today's stages, as they were counted when every stage was described by hand.

`golden_counts.json` holds those numbers. Where asking the stages gives another one, the reason
stands here beside the difference.
"""

import json
from functools import cache
from pathlib import Path

import pytest
from asked import asked

from experiments.bench.count import Work
from experiments.bench.random_models import Subject
from experiments.bench.sizes import scale_tree
from experiments.bench.train import networks_of, step_work
from experiments.checkpoints.wan_keys import PUBLISHED
from experiments.launch.memory.count import FULL, HALF, Load, of_fit
from experiments.launch.stages import asked_of_networks
from experiments.runs.recipe import Library, Resolver

GOLDEN = json.loads((Path(__file__).parent / "golden_counts.json").read_text())
CLIP = (21, 16, 60, 104)


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
    items = of_fit(run, loads, average=average, checkpointing=kept == "recomputed")
    assert {item.what: item.bytes for item in items} == GOLDEN["memory"][case]


CHANGED = {"stage3_asymmetric_dmd"}


@cache
def subject(scale):
    return Subject(scale_tree(scale, {}, Library()), None)


@cache
def resolver(scale):
    return Resolver(scale)


@pytest.mark.parametrize("case", [c for c in GOLDEN["work"] if "stage" in c])
def test_work_of_a_step_is_as_it_was(case):
    scale, recipe, *turn = case.split()
    run = resolver(scale).resolve(recipe)
    asked_of, configs = asked_of_networks(run.recipe), networks_of(run, subject(scale))
    (roles,) = [roles for roles in asked_of.steps if not turn or roles == tuple(turn)]
    checkpointed = run.recipe["launch"].get("gradient_checkpointing", False)
    done, needed = step_work(subject(scale), asked_of, roles, configs, 1, checkpointed)
    found, old = sum(done, Work()), GOLDEN["work"][case]
    print(case, found.operations / old["operations"], found.bytes / old["bytes"], needed / old["needed"])
