"""What a budget buys: the best affordable cells, and which is ahead."""

from dataclasses import replace

from synthetic_sweep import PAPER, make_sweep

from sweeps.report.frame import Frame
from sweeps.report.frontiers import frontier_tables
from sweeps.report.intervals import FrameNumbers
from sweeps.report.layout import load_layout

SAID = {"title": "bought", "run": "stage3", "rows": "init", "cost": "time", "quality": "total"}


def frontier(tmp_path, **made):
    sweep = make_sweep(tmp_path, clips=False, **made)
    layout = replace(load_layout(sweep), frontiers=[SAID])
    return frontier_tables(FrameNumbers(Frame(sweep, tmp_path, layout)))


def test_every_budget_shows_the_best_cells_it_pays_for(tmp_path):
    (table,) = frontier(tmp_path, seeds=(0, 1, 2), noise=0.01)
    budgets = [row[0] for row in table.rows]
    assert budgets == ["70", "80", "180", "300"], "CD, DMD, SF-ODE, causal ODE, by what they cost"
    bought = [dict(zip(table.head, row, strict=True)) for row in table.rows]
    assert bought[0]["ahead"] == "only causal CD"
    assert [row["causal ODE"] == "-" for row in bought] == [True, True, True, False]
    assert bought[-1]["causal CD"] == bought[0]["causal CD"], "more money makes nothing worse"
    best = max(PAPER["blocks"], key=lambda steps: PAPER["blocks"][steps]["causal_cd"][0])
    assert f"({best}-step)" in bought[0]["causal CD"], "of three that cost the same"
    assert bought[-1]["ahead"].startswith("causal CD by ")


def test_a_lead_within_the_interval_is_no_lead(tmp_path):
    (table,) = frontier(tmp_path, seeds=(0, 1, 2), noise=4.0)
    assert "not distinguishable from" in table.rows[-1][-1]


def test_nothing_is_shown_of_what_was_not_run(tmp_path):
    made = [(init, steps) for steps, rows in PAPER["blocks"].items() for init in rows]
    sweep = make_sweep(tmp_path, clips=False, skip=made)
    layout = replace(load_layout(sweep), frontiers=[SAID])
    frame = Frame(sweep, tmp_path, layout)
    frame.places = {a: p for a, p in frame.places.items() if "few_steps" in p.labels}
    assert frontier_tables(FrameNumbers(frame)) == []


def test_before_stage_3_a_cell_has_the_same_cost(tmp_path):
    """The student of a Stage-2 score is the Stage 2; what it was trained from is not."""
    before, after = (
        frontier_tables(FrameNumbers(Frame(sweep, tmp_path, layout)))[0]
        for sweep in [make_sweep(tmp_path, clips=False)]
        for run in ("stage2", "stage3")
        for layout in [replace(load_layout(sweep), frontiers=[SAID | {"run": run}])]
    )
    assert [row[0] for row in before.rows] == [row[0] for row in after.rows]
    assert before.rows[0][1:] != after.rows[0][1:], "of other clips"


def test_a_stage_2_that_is_not_done_has_no_cost_before_stage_3_either(tmp_path):
    sweep = make_sweep(tmp_path, clips=False)
    frame = Frame(sweep, tmp_path, load_layout(sweep))
    labels = {"init": "causal_cd", "few_steps": 2}
    places = [place for place in frame.places.values() if place.labels == labels]
    assert [frame.cost_of(place, 0)["seconds"] for place in places] == [70.0, 70.0]
    (stage2,) = tmp_path.glob("stage2_causal_cd_0-*")
    (stage2 / "done.json").unlink()
    assert [frame.cost_of(place, 0) for place in places] == [None, None]
