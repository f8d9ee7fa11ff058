"""The sweeps of systems and of initialisations: what they plan, and the papers' own numbers."""

import pytest
from synthetic_sweep import numbers_of

from experiments.launch.checks import problem
from experiments.runs.files import load_scale
from experiments.runs.recipe import Library, recipes
from sweeps.plan.graph import load_sweep
from sweeps.report.claims import comparisons, judge
from sweeps.report.intervals import PaperNumbers
from sweeps.report.layout import load_layout
from sweeps.report.table import our_table, paper_table

SWEEPS = ("comparison", "initialisations")


@pytest.fixture(scope="module", params=SWEEPS)
def sweep(request):
    return load_sweep(request.param, "tiny")


def test_the_papers_own_numbers_give_the_expected_answers(sweep):
    layout = load_layout(sweep)
    claims = {c["id"]: c for group in layout.claims["groups"] for c in group["claims"]}
    (group,) = judge(layout.claims, PaperNumbers(layout.paper, layout))
    assert {v.id: v.verdict for v in group.verdicts} == {i: c["expect"] for i, c in claims.items()}


def test_every_claim_asks_cells_that_the_sweep_has(sweep):
    layout, known = load_layout(sweep), set()
    for cell in sweep.cells:
        labels = {str(value) for name, value in cell.labels.items() if name != "seed"}
        known |= {(frozenset(labels), run) for run in cell.runs}
    for claim in (c for group in layout.claims["groups"] for c in group["claims"]):
        assert claim["sentence"].endswith((".", ".)")) and claim["where"]
        for said in comparisons(claim):
            for side in (value for value in said.values() if isinstance(value, str)):
                cell, run, column = side.split("/")
                assert (frozenset(cell.split("-")), run) in known, side
                assert column in layout.columns, side


def test_the_printed_numbers_are_copied_as_printed(sweep):
    """VBench's Total is (4 Quality + Semantic) / 5, which a slip of the pen would break."""
    layout = load_layout(sweep)
    paper, order = layout.paper, layout.paper["order"]
    for rows in paper["blocks"].values():
        for values in rows.values():
            row = dict(zip(order, values, strict=True))
            whole = (4 * row["quality"] + row["semantic"]) / 5
            assert row["total"] == pytest.approx(whole, abs=0.011)


def test_the_printed_table_stands_beside_ours_row_by_row(sweep, tmp_path):
    numbers = numbers_of(sweep, tmp_path)
    ours, printed = our_table(numbers), paper_table(numbers.layout)
    names = {(block.title, row.name) for block in ours.blocks for row in block.rows}
    assert {(block.title, row.name) for block in printed.blocks for row in block.rows} <= names
    assert {entry.text for row in ours.rows for entry in row.entries.values()} <= {"not run", "-"}
    if "latency" in numbers.layout.columns:  # which no run of the references measures
        assert {row.entries["latency"].text for row in ours.rows} == {"not run"}
        assert {row.entries["latency"].text for row in ours.references} == {"-"}


def test_table_1_is_one_block_whose_second_best_are_those_that_are_underlined():
    layout = load_layout(load_sweep("comparison", "tiny"))
    (block,) = paper_table(layout).blocks
    for steps, rows in layout.paper["underlined"].items():
        for system, columns in rows.items():
            row = next(r for r in block.rows if r.address == f"{system}-{steps}/stage3")
            assert [c for c in columns if row.entries[c].rank != "second"] == []


def test_six_systems_of_which_three_generate_by_chunks():
    sweep = load_sweep("comparison", "tiny")
    students = {}
    for cell in sweep.cells:
        if "speed" in cell.runs:
            sampled = cell.runs["stage3"].needs["samples"]
            student, speed = sampled.needs["student"], cell.runs["speed"]
            assert speed.needs["timed"] is student
            assert speed.recipe["score"]["blocks"] == sampled.recipe["sample"]["blocks"]
            assert speed.recipe["score"]["few_steps"] == sampled.recipe["sample"]["few_steps"]
            students[cell.labels["system"], cell.labels["few_steps"]] = student
    blocks = {key: run.recipe["stage"]["blocks"] for key, run in students.items()}
    chunks = {key for key, value in blocks.items() if value == "chunkwise"}
    assert chunks == {("causvid", 4), ("self_forcing", 4), ("causal_forcing", 4)}
    assert set(blocks) - chunks == {("causal_forcing_pp", steps) for steps in (1, 2, 4)}
    ablation = load_sweep("ablation", "tiny").runs
    assert {students[key].name for key in set(blocks) - chunks} <= set(ablation), "made once"
    stage1 = [r for r in sweep.runs.values() if r.recipe["recipe"] == "stage1_teacher_forcing"]
    assert len(stage1) == 2


def test_published_students_are_sampled_and_timed_without_any_training():
    runs = load_sweep("published_students", "wan1.3b").runs.values()
    assert not [run for run in runs if run.verb in ("fit", "pairs")]
    folders = {run.recipe["needs"]["student"] for run in runs if run.verb == "sample"}
    assert len(folders) == 5 and all("data/students/" in folder for folder in folders)
    both = load_sweep("comparison_published", "wan1.3b")
    assert len(both.cells) == 5 + len(load_sweep("comparison", "wan1.3b").cells)


def test_every_recipe_of_the_sweeps_passes_its_check(sweep):
    """One run of each, in the sweep's own graph, where a recipe meets what it needs."""
    chosen = {run.recipe["recipe"]: run for run in sweep.runs.values()}
    assert {name: said for name, run in chosen.items() if (said := problem(run.recipe))} == {}


PLANNED = [*((name, "tiny") for name in ("ablation", *SWEEPS)), ("world_model", "room")]


@pytest.mark.parametrize(("name", "scale"), PLANNED)
def test_the_plan_knows_what_every_run_costs(name, scale):
    runs = load_sweep(name, scale).runs.values()
    assert {run.recipe["recipe"] for run in runs if run.expected_s is None} == set()


def test_a_hint_of_cost_is_of_a_recipe_there_is():
    scales = [load_scale(Library().scales, file.stem) for file in Library().scales.glob("*.yaml")]
    hints = [set(scale["launch"].get("cost_s", {})) for scale in scales]
    assert any(hints) and set().union(*hints) <= set(recipes())


def test_the_same_checkpoint_is_sampled_in_one_and_in_two_steps():
    cells = load_sweep("initialisations", "tiny").cells
    found = {
        cell.labels["init"]: cell.runs["stage3"].needs["samples"]
        for cell in cells
        if cell.labels.get("setting") == "framewise_2"
    }
    two, one, noisy = (found[f"tf_dcm{end}"] for end in ("", "_in_one_step", "_noisy_context"))
    assert one.needs["student"] is two.needs["student"] and one.name != two.name
    assert (one.recipe["sample"]["few_steps"], two.recipe["sample"]["few_steps"]) == (1, 2)
    assert noisy.recipe["sample"]["noisy_from"] == 1
    assert noisy.needs["student"].recipe["stage"]["noisy_from"] == 1


def test_budgets_of_stage_2_are_those_of_the_other_arms():
    """But for the tenth that the sweep asks for."""
    sweep = load_sweep("initialisations", "tiny")
    by_class = {}
    for run in sweep.runs.values():
        if run.recipe["recipe"].startswith("stage2_") and run.recipe["fit"]["steps"]:
            how = (run.recipe["fit"]["steps"], run.recipe["stage"]["schedule"])
            by_class.setdefault(run.recipe["stage"]["class"], set()).add(how)
    ((steps, schedule),) = by_class["CausalCD"]
    assert by_class.pop("TFsCM") == {(steps, schedule), (steps // 10, schedule)}
    assert all(budget == {(steps, schedule)} for budget in by_class.values())
