"""Rows of a table: references and controls stand apart, and any sweep keeps all its cells."""

import csv
import io
from dataclasses import replace

import pytest
from synthetic_sweep import CLIPS, make_sweep, numbers_of, row_of, table_of
from test_table import LAYOUT

from sweeps.plan.graph import Cell, Sweep, load_sweep
from sweeps.report import render
from sweeps.report.claims import judge
from sweeps.report.intervals import PaperNumbers, t_interval
from sweeps.report.layout import load_layout
from sweeps.report.table import our_table


def test_controls_stand_in_their_block_and_are_not_ranked(tmp_path):
    """Causal CD is the best of every block, in each column that Total decides; as a control it has
    no rank, stands last in its block, and the second best are the best.
    """
    sweep = make_sweep(tmp_path, clips=False)
    numbers = numbers_of(sweep, tmp_path)
    before = our_table(numbers)
    numbers.layout = replace(numbers.layout, controls=["causal_cd"])
    for block, ranked in zip(our_table(numbers).blocks, before.blocks, strict=True):
        best = next(row for row in ranked.rows if row.entries["total"].rank == "best")
        assert best.id == "causal_cd" and block.rows[-1].id == "causal_cd"
        assert [row.id for row in block.rows if row.entries["total"].rank == "best"] == [
            row.id for row in ranked.rows if row.entries["total"].rank == "second"
        ]
        control = block.rows[-1].entries
        assert not any(entry.rank or entry.like_best for entry in control.values())
        assert control["total"].margin == best.entries["total"].margin


def test_the_controls_sweep_is_the_ablation_and_its_controls():
    sweep, ablation = load_sweep("controls", "tiny"), load_sweep("ablation", "tiny")
    assert sweep.scale == "tiny" and set(ablation.runs) < set(sweep.runs)
    controls = [cell for cell in sweep.cells if cell.labels["init"] in LAYOUT.controls]
    assert {cell.labels["init"] for cell in controls} == set(LAYOUT.controls)
    assert len(controls) == 6 and load_layout(sweep).preconditions
    for cell in controls:
        stage3 = cell.runs["stage3"].needs["samples"].needs["student"]
        pairs = stage3.needs["student"].needs["data"]
        own = pairs.needs["teacher"] == stage3.needs["teacher"]
        assert own or pairs.recipe["pairs"]["guidance"] == 6


def test_a_reference_of_several_seeds_is_their_mean_and_a_shared_one_counts_once(tmp_path):
    sweep = make_sweep(tmp_path, seeds=(0, 1, 2), clips=False)
    teacher, ceiling = table_of(sweep, tmp_path).references
    margin = teacher.entries["total"].margin
    assert margin.value == pytest.approx(89.0) and teacher.n == f"3 × {CLIPS}"
    assert (margin.low, margin.high) == pytest.approx(t_interval([88.0, 89.0, 90.0]))
    assert ceiling.entries["total"].margin.value == 95.0 and ceiling.n == f"1 × {CLIPS}"


def test_our_ablation_shows_teachers_ceiling_and_floors_by_name():
    sweep, names = load_sweep("ablation", "tiny", (0, 1)), LAYOUT.references
    cells = [cell for cell in sweep.cells if "few_steps" not in cell.labels]
    assert {cell.labels["init"] for cell in cells} == set(names)
    runs = {
        init: {c.runs["stage3"].name for c in cells if c.labels["init"] == init} for init in names
    }
    assert {init: len(found) for init, found in runs.items()} == {
        init: 2 if init == "ar_teacher" else 1 for init in names
    }
    for cell in cells:
        if (init := cell.labels["init"]) in ("base", "real_score", "ar_teacher"):
            sample = cell.runs["stage3"].needs["samples"]
            student = sample.needs["student"].recipe["recipe"]
            if init == "ar_teacher":
                assert student == "stage1_teacher_forcing"
                assert sample.recipe["sample"]["sampler"] == "autoregressive_ode"
            else:
                assert student == {"base": "base", "real_score": "continued_base"}[init]
                assert sample.recipe["sample"]["sampler"] == "bidirectional_ode"


def _another_row(sweep, **labels):
    cells = [c for c in sweep.cells if c.labels.get("init") == "causal_cd"]
    return Sweep(**{**vars(sweep), "cells": [*sweep.cells, *(
        Cell(c.labels | labels, c.runs) for c in cells)]})  # fmt: skip


def test_a_sixth_row_is_ranked_by_its_own_name_and_changes_no_claim_of_the_paper(tmp_path):
    sweep = make_sweep(tmp_path, clips=False)
    more = _another_row(sweep, init="causal_new")
    shown = table_of(more, tmp_path)
    assert row_of(shown, 1, "causal_new").name == "causal_new"
    assert [len(block.rows) for block in shown.blocks] == [6, 6, 6]
    layout = load_layout(more)
    printed = judge(layout.claims, PaperNumbers(layout.paper, layout))
    expected = [claim["expect"] for group in layout.claims["groups"] for claim in group["claims"]]
    assert [verdict.verdict for group in printed for verdict in group.verdicts] == expected
    five, six = (judge(layout.claims, numbers_of(s, tmp_path)) for s in (sweep, more))
    assert five == six


def test_a_sweep_over_any_axis_keeps_all_its_cells(tmp_path):
    """Rows are told apart by all labels; without few_steps they are ranked as well."""
    made = make_sweep(tmp_path, clips=False)
    runs = [cell.runs for cell in made.cells[:3]]
    for labels in ({"few_steps": 2, "init": "causal_cd"}, {"init": "causal_cd"}):
        cells = [
            Cell(labels | {"decay": decay, "seed": 0}, {"stage3": each["stage3"]})
            for decay, each in zip((0.99, 0.9, 0.95), runs, strict=True)
        ]
        shown = table_of(Sweep("decay", "tiny", [0], cells), tmp_path)
        (block,) = shown.blocks
        assert [row.name for row in block.rows] == ["0.99", "0.9", "0.95"] and not shown.references
        ranks = [row.entries["total"].rank for row in block.rows]
        assert sorted(ranks) == ["", "best", "second"]
        lines = list(csv.DictReader(io.StringIO(render.table_csv(shown))))
        assert [line["decay"] for line in lines] == ["0.99", "0.9", "0.95"]
