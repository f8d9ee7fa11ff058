"""Which consistency objective comes nearest to the flow map in a few updates."""

import pytest
from synthetic_sweep import numbers_of

from sweeps import __main__ as command
from sweeps.plan.graph import load_sweep

SWEEP = """
title: Few updates of each consistency objective, in the switching world
settings:
  data: {clips: 4096, prompts: 1024, heldout: 1024, reference: 512}
  stages: {base: {steps: 300}, stage1: {steps: 400}}
cells:
  - axes: {method: [ar_diffusion]}
    runs:
      updates: &scored
        recipe: score_law_student
        score: {metrics: [law.flow_map]}
        needs: {student: {recipe: "stage2_${method}"}}
  - axes: {method: [tf_dcm, tf_scm]}
    runs:
      updates: {<<: *scored, needs: {student: {recipe: "stage2_${method}", fit: {steps: 50}}}}
  - axes: {method: [causal_cd_as_published]}
    runs:
      updates:
        <<: *scored
        needs:
          student:
            recipe: stage2_causal_cd
            stage: {intervals: 48, solver: euler, decay: 0.99}
            fit: {steps: 100}
  - axes: {method: [tf_scm_exact_at_cds_rate]}
    runs:
      updates:
        <<: *scored
        needs:
          student:
            recipe: stage2_tf_scm
            stage: {tangent: exact, learning_rate: 2.0e-3}
            fit: {steps: 100}
"""


@pytest.mark.slow
def test_the_continuous_objective_starts_fastest_and_its_exact_tangent_diverges(tmp_path):
    file = tmp_path / "updates.yaml"
    file.write_text(SWEEP)
    words = ["run", str(file), "--scale", "switching", "--runs", str(tmp_path / "runs")]
    assert command.main([*words, "--workers", "1"]) == 0
    numbers = numbers_of(load_sweep(file, "switching", [0]), tmp_path / "runs")
    error = {
        cell.labels["method"]: numbers.estimate(
            [(1.0, f"{cell.labels['method']}/updates/law.flow_map")]
        ).value
        for cell in numbers.frame.sweep.cells
    }
    start = error["ar_diffusion"]
    assert error["tf_scm"] < 0.85 * error["tf_dcm"] < 0.85 * start, error
    assert error["causal_cd_as_published"] > 0.9 * start, "in twice as many updates"
    assert error["tf_scm_exact_at_cds_rate"] > start, "it diverges"
