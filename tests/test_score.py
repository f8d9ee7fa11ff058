import json
import shutil

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tiny_probe import WORLD, clips, probe

from datamodules.shards.reader import ShardWriter
from experiments.metrics.registry import METRICS
from experiments.runs.folder import RunFolder
from experiments.verbs import score
from experiments.worlds.digits import calibration
from experiments.worlds.digits import score as world
from lightning_modules.networks.encoders.autoencoders import PatchTransform

SCORE = {"metrics": "all", "first": 256, "clips": 128, "reference_clips": 256, "corrupt": "none"}


def write_run(path, kind, source, field):
    """A finished curate or sample run with `source`'s clips in `field`."""
    codec = PatchTransform([0.0] * 16, 1.0, 16)
    about = {
        "fps": 8,
        "world": WORLD.__dict__,
        "normalisation": {"mean": [0.0] * 16, "std": 1.0},
        "autoencoder": {"class": "PatchTransform", "id": codec.id, "kept": 16},
    }
    latents = codec.encode(torch.from_numpy(source.pixels)).numpy()
    arrays = latents if field == "latents" else source.videos
    with ShardWriter(path / "shards", kind, about=about) as writer:
        for i, attributes in enumerate(source.attributes):
            info = {"caption": source.captions[i], "attributes": attributes}
            text = np.zeros((12, 32), np.float32)
            writer.write(f"clip-{i:04d}", {field: arrays[i], "text": text}, info)
    (path / "done.json").write_text("{}")
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    source = clips("heldout", 448)
    write_run(folder / "heldout-00000000", "clips", source, "latents")
    write_run(folder / "sample-00000000", "videos", source, "video")
    (folder / "probe-00000000").mkdir()
    probe().hand_off(folder / "probe-00000000")
    (folder / "probe-00000000" / "done.json").write_text("{}")
    score.run(*prepare(folder, "calibration-0", needs=CALIBRATES, score={"clips": 384}))
    calibrated = (folder / "calibration-0").rename(folder / "calibration-00000000")
    (calibrated / "recipe.yaml").unlink()  # it has another hash
    (calibrated / "done.json").write_text("{}")
    return folder


CALIBRATES = {"reference": "heldout-00000000", "probe": "probe-00000000"}


def prepare(runs, name, samples="heldout-00000000", needs=None, score=None, **changes):
    needs = needs or CALIBRATES | {"calibration": "calibration-00000000", "samples": samples}
    recipe = {
        "recipe": name.rpartition("-")[0],
        "verb": "score",
        "seed": 0,
        "needs": needs,
        "score": score or {**SCORE, **changes},
        "launch": {"threads": 1, "accelerator": "cpu", "scale": "tiny"},
    }
    (runs / name).mkdir(exist_ok=True)
    (runs / name / "recipe.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(recipe)))
    return recipe, RunFolder(runs / name)


def test_scores_are_written_as_the_schema_says_and_repeat_bit_for_bit(runs):
    for name in ("score-1", "score-2"):
        score.run(*prepare(runs, name))
    first, second = runs / "score-1", runs / "score-2"
    for file in ("scores.jsonl", "curves.json", "per_clip.npz"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    records = [json.loads(line) for line in (first / "scores.jsonl").read_text().splitlines()]
    assert [r["metric"] for r in records] == [id for id in METRICS if id.startswith("world.")]
    with np.load(first / "per_clip.npz", allow_pickle=False) as arrays:
        assert list(arrays["key"][:2]) == ["clip-0256", "clip-0257"]
        for r in records:
            assert r["kind"] == "proxy" and r["suite"] == "world" and len(r["calibration"]) == 16
            assert r["inputs"]["clips"] == 128 and r["inputs"]["corrupt"] == "none"
            assert len(r["backend"]["probe_sha256"]) == 64
            assert r["value"] is not None or r["skipped"]
            if r["per_sample"]:
                values = arrays[r["per_sample"].split(":")[1]]
                assert values.shape == (128,)
    curves = json.loads((first / "curves.json").read_text())
    assert len(curves["world.fd_by_frame"]) == 8


def test_another_reference_at_the_same_place_is_read_again(runs, tmp_path):
    """A sweep's worker may live longer than a run folder."""
    here = shutil.copytree(runs, tmp_path / "runs")

    def scored(name):
        score.run(*prepare(here, name, samples="sample-00000000"))
        return (here / name / "scores.jsonl").read_bytes()

    scored("score-a")
    shutil.rmtree(here / "heldout-00000000")
    write_run(here / "heldout-00000000", "clips", clips("heldout", 448, 448), "latents")
    found = scored("score-b")
    world._reference.cache_clear()
    assert scored("score-c") == found


def test_pixels_and_latents_of_the_same_clips_score_alike(runs):
    chosen = ["world.semantic", "world.fd_pairs"]
    score.run(*prepare(runs, "score-3", metrics=chosen))
    score.run(*prepare(runs, "score-4", samples="sample-00000000", metrics=chosen))
    values = [
        [json.loads(line)["value"] for line in (runs / name / "scores.jsonl").open()]
        for name in ("score-3", "score-4")
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6) and len(values[0]) == 2


def test_a_corrupted_row_scores_lower(runs):
    for name, how in (("score-5", "none"), ("score-6", "shuffle_captions")):
        score.run(*prepare(runs, name, metrics=["world.semantic"], corrupt=how))
    good, bad = (
        json.loads((runs / name / "scores.jsonl").read_text()) for name in ("score-5", "score-6")
    )
    assert bad["value"] < 0.6 * good["value"] and bad["inputs"]["corrupt"] == "shuffle_captions"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["world.totall"]}, r"no metric 'world.totall'"),
        ({"corrupt": "smear"}, "no corruption 'smear'"),
        ({"first": 255}, "compared with themselves"),
        ({"clip": 3}, "did you mean 'clips'"),
        ({"clips": "many"}, r"score.clips: 'many' must be a whole number"),
    ],
)
def test_mistakes_are_refused_before_anything_is_loaded(runs, changes, message):
    recipe, _ = prepare(runs, "score-7", **changes)
    with pytest.raises(ValueError, match=message):
        score.check(recipe)


def test_too_few_clips_and_missing_needs_are_refused(runs):
    with pytest.raises(ValueError, match="clips 256..755 wanted"):
        score.run(*prepare(runs, "score-8", clips=500))
    recipe, _ = prepare(runs, "score-9")
    for role in ("samples", "calibration", "reference"):
        needs = {other: name for other, name in recipe["needs"].items() if other != role}
        with pytest.raises(ValueError, match=f"needs.{role} is missing"):
            score.check(recipe | {"needs": needs})
    del recipe["needs"]["probe"]
    with pytest.raises(ValueError, match="score needs one of .*probe"):
        score.check(recipe)


def test_the_calibration_says_what_it_was_made_from_and_scores_name_its_content(runs):
    found = json.loads((runs / "calibration-00000000" / calibration.FILE).read_text())
    made_from = found["made_from"]
    assert made_from["probe"] == "probe-00000000" and len(made_from["probe_sha256"]) == 64
    assert made_from["reference"] == "heldout-00000000" and made_from["reference_fingerprint"]
    assert made_from["real"] == [0, 192] and made_from["measured"] == [192, 384]
    score.run(*prepare(runs, "score-10", metrics=["world.total"]))
    (line,) = (runs / "score-10" / "scores.jsonl").read_text().splitlines()
    assert json.loads(line)["calibration"] == calibration.digest(found)


@pytest.mark.parametrize("role", ["probe", "reference"])
def test_constants_of_other_runs_are_refused_with_the_cure(runs, tmp_path, role):
    here = shutil.copytree(runs, tmp_path / "runs")
    file = here / "calibration-00000000" / calibration.FILE
    stored = json.loads(file.read_text())
    stored["made_from"][role] = "other-11111111"
    file.write_text(json.dumps(stored))
    cure = rf"needs.calibration=\{{recipe: calibration, needs: \{{{role}"
    with pytest.raises(ValueError, match=f"the {role} other-11111111.*{cure}"):
        score.run(*prepare(here, "score-11"))


@pytest.mark.parametrize(
    ("settings", "needs", "message"),
    [
        ({"clips": 1}, CALIBRATES, "score.clips: 1; half"),
        ({"clips": 8, "corrupt": "none"}, CALIBRATES, "score.corrupt"),
        ({"clips": 8}, {"probe": "probe-00000000"}, "needs.reference is missing"),
    ],
)
def test_a_calibration_that_does_not_fit_is_refused(runs, settings, needs, message):
    recipe, _ = prepare(runs, "calibration-1", needs=needs, score=settings)
    with pytest.raises(ValueError, match=message):
        score.check(recipe)
