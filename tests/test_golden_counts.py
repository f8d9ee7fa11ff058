"""Memory and work of today's stages, as they were counted when every stage was described by hand.

`golden_counts.json` holds those numbers. Where asking the stages gives another one, the reason
stands here beside the difference.
"""

import json
from functools import cache
from pathlib import Path

import pytest
from asked import asked

from experiments.checkpoints.wan_keys import PUBLISHED
from experiments.launch.memory.count import FULL, HALF, Load, of_fit

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
