"""The verb `score` in a closed-form world: what it writes and what it refuses."""

import json

import numpy as np
import pytest
from omegaconf import OmegaConf
from test_closed_form_metrics import SWITCHING, drawn

from datamodules.shards.reader import ShardWriter
from experiments.runs.folder import RunFolder
from experiments.verbs import score
from experiments.worlds.closed_form import score as closed_form
from lightning_modules.networks.closed_form.network import ClosedForm


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with held-out clips and the law, as `curate` leaves it."""
    folder = tmp_path_factory.mktemp("runs")
    run, clips = folder / "heldout-00000000", drawn(SWITCHING, "reference")
    with ShardWriter(run / "shards", "clips", about={"fps": 1}, negative=np.zeros((1, 3))) as out:
        for number, (latents, text) in enumerate(zip(clips.latents, clips.text, strict=True)):
            arrays = {"latents": latents.numpy(), "text": text.numpy()}
            out.write(f"clip-{number:04d}", arrays, {"caption": "component"})
    ClosedForm.of(SWITCHING, 2).save_pretrained(run / "law")
    (run / "done.json").write_text("{}")
    return folder


def recipe(runs, name, needs, **changes):
    settings = {"metrics": ["law.energy"], "first": 256, "clips": 128, "reference_clips": 256}
    settings |= {"shift": 2.0, "intervals": 8, "few_steps": 1}
    tree = {
        "recipe": "score", "verb": "score", "seed": 0, "needs": needs, "score": settings | changes,
        "launch": {"threads": 1, "accelerator": "cpu", "scale": "switching"},
    }  # fmt: skip
    (runs / name).mkdir(exist_ok=True)
    (runs / name / "recipe.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(tree)))
    return tree, RunFolder(runs / name)


NEEDS = dict.fromkeys(("law", "samples", "reference"), "heldout-00000000")


def test_scores_beside_a_law_go_through_the_ordinary_verb_and_repeat(runs):
    for name in ("score-1", "score-2"):
        score.run(*recipe(runs, name, NEEDS, metrics="all"))
    first, second = (runs / f"score-{n}" for n in (1, 2))
    for file in ("scores.jsonl", "curves.json", "per_clip.npz"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    records = [json.loads(line) for line in (first / "scores.jsonl").read_text().splitlines()]
    values = {r["metric"]: r["value"] for r in records}
    assert values["law.energy"] < 0.06 and values["law.precision"] > 0.9
    assert {r["suite"] for r in records} == {"law"} and {r["kind"] for r in records} == {"exact"}
    assert "law.flow_map" not in values, "there is no student"
    assert len(json.loads((first / "curves.json").read_text())["law.energy_drift.by_frame"]) == 3


@pytest.mark.parametrize(
    ("needs", "changes", "message"),
    [
        ({}, {}, "needs one of law, probe"),
        (NEEDS | {"probe": "x/y"}, {}, "needs one of law, probe"),
        ({"law": "x/y", "samples": "x/z"}, {}, "needs.reference is missing"),
        ({"law": "x/y"}, {}, "law.energy needs samples"),
        (NEEDS, {"first": 255}, "first: 255 lies among the 256"),
        (NEEDS, {"clip": 3}, "did you mean 'clips'"),
    ],
)
def test_mistakes_are_refused_before_anything_is_loaded(runs, needs, changes, message):
    tree, _ = recipe(runs, "score-3", needs, **changes)
    with pytest.raises(ValueError, match=message):
        score.check(tree)


def test_too_few_clips_and_a_run_without_a_law_are_refused_with_the_cure(runs):
    with pytest.raises(ValueError, match=r"clips 256\.\.755 wanted.*lower score\.clips"):
        score.run(*recipe(runs, "score-4", NEEDS, clips=500))
    with pytest.raises(ValueError, match=r"has no law/config\.json"):
        closed_form.read_law(runs)
