"""A small theory run, end to end: trained, scored and read by what `make theory` runs."""

import json

import pytest
from synthetic_sweep import numbers_of

from sweeps import __main__ as command
from sweeps.plan.graph import load_sweep

SWEEP = """
title: Three students of the Gaussian world, hardly trained
settings:
  data: {clips: 1024, prompts: 1024, heldout: 512, reference: 256}
  sampling: {count: 256, batch: 256}
  intervals: 8
  stages:
    pairs: {count: 1024}
    base: {steps: 150}
    stage1: {steps: 250}
    causal_ode: {steps: 250}
    self_forcing_ode: {steps: 250}
    stage3: {steps: 12}
cells:
  - axes: {init: [ar_diffusion, causal_ode, self_forcing_ode]}
    runs:
      before:
        recipe: score_law_student
        score: {few_steps: 1}
        needs: {student: {recipe: "stage2_${init}"}}
  - axes: {init: [causal_ode], few_steps: [1]}
    runs:
      after:
        recipe: score_law_clips
        needs:
          samples:
            recipe: sample
            few_steps: ${few_steps}
            needs: {student: {recipe: stage3_asymmetric_dmd, init: "${init}", few_steps: 1}}
  - axes: {of: [law]}
    runs:
      facts: {recipe: score_law_facts, score: {metrics: [law.injectivity.bidirectional]}}
"""


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theory")
    file = folder / "theory_gaussian.yaml"
    file.write_text(SWEEP)
    words = ["run", str(file), "--scale", "gaussian", "--runs", str(folder / "runs")]
    assert command.main([*words, "--workers", "1"]) == 0
    return numbers_of(load_sweep(file, "gaussian", [0]), folder / "runs")


@pytest.mark.slow
def test_causal_ode_finds_the_flow_map_and_ar_diffusion_and_sf_ode_do_not(numbers):
    assert numbers.frame.counts == (5, 5)
    errors = {
        init: numbers.estimate([(1.0, f"{init}/before/law.flow_map")]).value
        for init in ("ar_diffusion", "causal_ode", "self_forcing_ode")
    }
    assert errors["causal_ode"] < 0.7 * min(errors["ar_diffusion"], errors["self_forcing_ode"])


@pytest.mark.slow
def test_the_sf_ode_students_residual_stays_above_what_the_law_leaves(numbers):
    residual = numbers.estimate([(1.0, "self_forcing_ode/before/law.residual.bidirectional")])
    least = numbers.estimate([(1.0, "law/facts/law.injectivity.bidirectional")])
    assert 0.9 * least.value < residual.value < 3 * least.value
    causal = numbers.estimate([(1.0, "causal_ode/before/law.residual.causal")])
    assert causal.value < residual.value


@pytest.mark.slow
def test_every_trained_cell_is_scored_with_all_that_its_needs_allow(numbers):
    run = numbers.frame.place("causal_ode-1/after").scored[0]
    records = [json.loads(line) for line in (run.folder / "scores.jsonl").read_text().splitlines()]
    found = {r["metric"] for r in records}
    assert {"law.energy", "law.precision"} <= found and "law.flow_map" not in found
    assert numbers.estimate([(1.0, "causal_ode-1/after/law.energy")]).value < 1
