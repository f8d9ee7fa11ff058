"""A bidirectional network where a causal one belongs, and the reverse, is refused before work."""

import json
from pathlib import Path

import pytest

from experiments.launch.causality import is_causal, require_causality
from experiments.launch.execute import verb_module
from experiments.runs.recipe import Resolver

BASE, STAGE1 = {"recipe": "base"}, {"recipe": "stage1_teacher_forcing"}
OF_BASE, OF_STAGE1 = r"base-\w+ was trained with bidirectional", r"stage1_\S+ was trained with caus"
WRONG = {
    "a base as the teacher of CD": ("stage2_causal_cd", {"needs.teacher": BASE},
                                    rf"needs.teacher: {OF_BASE}.*CausalCD asks.*Stage 1"),
    "a base as the teacher of sCM": ("stage2_tf_scm", {"needs.teacher": BASE}, OF_BASE),
    "a base as the score of causal DMD": ("stage2_causal_dmd", {"needs.teacher": BASE}, OF_BASE),
    "a base as its critic": ("stage2_causal_dmd", {"needs.critic": BASE}, "needs.critic: base"),
    "Stage 1 as the real score": ("stage3_asymmetric_dmd", {"needs.teacher": STAGE1},
                                  rf"needs.teacher: {OF_STAGE1}.*AsymmetricDMD asks.*real score"),
    "Stage 1 as the fake score": ("stage3_sf_dmd", {"needs.critic": STAGE1}, "needs.critic: st"),
    "Stage 1 as CausVid's score": ("stage3_causvid_dmd", {"needs.teacher": STAGE1}, OF_STAGE1),
    "causal pairs of a base": ("causal_pairs", {"needs.teacher": BASE},
                               rf"needs.teacher: {OF_BASE} attention, and pairs.past=causal"),
    "whole clips of Stage 1": ("bidirectional_pairs", {"needs.teacher": STAGE1}, OF_STAGE1),
    "few steps of a base": ("sample", {"needs.student": BASE, "sampler": "few_steps"}, OF_BASE),
    "whole clips of an AR model": ("sample", {"needs.student": STAGE1,
                                              "sampler": "bidirectional_ode"}, OF_STAGE1),
}  # fmt: skip


def checked(tmp_path, name, settings):
    run = Resolver("tiny", runs=tmp_path).resolve(name, settings)
    verb_module(run.verb).check(run.recipe)


@pytest.mark.parametrize("case", WRONG)
def test_the_other_kind_is_refused(tmp_path, case):
    name, settings, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        checked(tmp_path, name, settings)


@pytest.mark.parametrize("name", ["stage2_causal_cd", "stage2_self_forcing_ode", "base",
                                  "stage3_asymmetric_dmd", "stage2_causal_dmd", "causal_pairs",
                                  "bidirectional_pairs", "stage3_causvid_dmd"])  # fmt: skip
def test_the_recipes_as_they_are_pass(tmp_path, name):
    checked(tmp_path, name, {})


def a_run(home: Path, stage: str) -> Path:
    (home / "student").mkdir(parents=True)
    (home / "student" / "config.json").write_text("{}")
    (home / "recipe.yaml").write_text(
        f"{{recipe: mine, verb: fit, seed: 0, needs: {{}}, stage: {{class: {stage}}}}}"
    )
    return home


def test_a_folder_is_known_by_its_run_or_by_its_causal_json(tmp_path):
    for stage, causal in (("Bidirectional", False), ("CausalCD", True), ("WorldProbe", None)):
        home = a_run(tmp_path / stage, stage)
        assert is_causal(home) is is_causal(home / "student") is causal, stage
    for sampler, causal in (("bidirectional_ode", False), ("few_steps", True)):
        exported = tmp_path / sampler
        exported.mkdir()
        (exported / "config.json").write_text("{}")
        assert is_causal(exported) is None, "as Wan's own folder"
        (exported / "causal.json").write_text(json.dumps({"sampling": {"sampler": sampler}}))
        assert is_causal(exported) is causal
    assert is_causal(tmp_path / "nowhere") is is_causal("Wan-AI/Wan2.1-T2V-1.3B") is None


def test_what_is_not_known_is_not_refused(tmp_path):
    for causal in (True, False):
        require_causality("teacher", tmp_path / "nowhere", causal, "who asks")
