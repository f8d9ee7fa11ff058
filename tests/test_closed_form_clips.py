"""The source closed_form: clips, disjoint splits, the law as a network; and every stage on it."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from datamodules.shards.reader import open_shards
from experiments.checkpoints.networks import load_network
from experiments.launch.execute import execute
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import Resolver
from experiments.verbs import curate
from lightning_modules.networks import ClosedForm

LAW = {
    "means": [[1.2, 0.0], [-0.6, 1.04]], "weights": [0.75, 0.25], "spread": 0.2, "decay": 1.0,
    "noise": 0.15, "angle": 0.8, "frames": 4,
}  # fmt: skip
SECTION = {"source": "closed_form", "kind": "clips", "count": 40, "law": LAW}


def recipe(seed=0, **changes):
    own = {"recipe": "closed_form_clips", "verb": "curate", "seed": seed, "needs": {}}
    return own | {"curate": SECTION | changes}


def made(path, **changes):
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(recipe(**changes))))
    folder = RunFolder(path)
    curate.run(folder.recipe, folder)
    return open_shards(path / "shards")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "clips"
    made(path)
    return path


def test_clips_carry_their_outcome(folder):
    """Latents unrounded, the component as text and words, and the signs that were drawn."""
    shards, law = open_shards(folder / "shards"), load_network(folder).law
    assert shards.manifest["fields"]["latents"] == {"shape": [4, 2, 1, 1], "dtype": "float32"}
    assert shards.manifest["law"] == LAW
    np.testing.assert_array_equal(shards.negative, np.zeros((1, 2), np.float32))
    agree = []
    for sample in shards:
        outcome = sample["info"]["attributes"]
        assert sample["caption"] == f"component {outcome['component']}"
        np.testing.assert_array_equal(sample["text"], np.eye(2)[[outcome["component"]]])
        clip = torch.from_numpy(sample["latents"]).flatten(1).double()[None]
        turned = law.branches_of(clip)[0] > 0.5
        agree += [
            sign == (1 if left else -1) for sign, left in zip(outcome["signs"], turned, strict=True)
        ]
    assert np.mean(agree) > 0.98, "a turn left and a turn right are 11 standard deviations apart"


def test_a_run_of_it_is_the_exact_network(folder):
    net = load_network(folder)
    assert isinstance(net, ClosedForm)
    assert (net.config.in_channels, net.config.out_channels, net.config.text_dim) == (2, 2, 2)
    assert list(net.parameters()) == []


def test_splits_are_disjoint_and_more_clips_extend_fewer(folder, tmp_path):
    shards = open_shards(folder / "shards")
    longer, other = made(tmp_path / "longer", count=1100), made(tmp_path / "other", seed=1)
    for index in range(40):
        np.testing.assert_array_equal(longer[index]["latents"], shards[index]["latents"])
        assert not np.array_equal(other[index]["latents"], shards[index]["latents"])
    assert len({sample["latents"].tobytes() for sample in longer}) == 1100
    assert not set(other.keys) & set(shards.keys)
    assert made(tmp_path / "again").fingerprint == shards.fingerprint


def test_prompts_are_text_alone(tmp_path):
    prompts = made(tmp_path / "prompts", kind="prompts")
    assert prompts.fields == ("text",) and len(prompts) == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "curate.count: 0"),
        ({"kind": "videos"}, "curate.kind: 'videos' must be one of clips, prompts"),
        ({"law": LAW | {"angel": 1.0}}, "curate.law.angel: .*angle"),
        ({"law": LAW | {"weights": [1.0, 1.0]}}, "do not sum to 1"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_made(change, message):
    with pytest.raises(ValueError, match=message):
        curate.check(recipe(**change))


def test_a_law_of_missing_numbers_is_refused(folder, tmp_path):
    text = (folder / "law" / "config.json").read_text().replace('"decay": 1.0,', "")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="law must have .*decay"):
        load_network(tmp_path)


SHORT = {
    "data.clips": 64, "data.prompts": 64, "data.heldout": 64, "data.reference": 32,
    "sampling.count": 32, "sampling.batch": 32, "stages.pairs.count": 64, "stages.pairs.batch": 32,
    **{f"stages.{stage}.steps": 7 for stage in (
        "base", "stage1", "self_forcing_ode", "causal_ode", "causal_cd", "causal_dmd", "stage3"
    )},
}  # fmt: skip


INITS = ("ar_diffusion", "self_forcing_ode", "causal_ode", "causal_cd", "causal_dmd")


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "inits"), [("gaussian", ["causal_cd"]), ("switching", INITS)])
def test_every_stage_runs_in_a_closed_form_world(tmp_path, scale, inits):
    """Base, Stage 1, pairs, all five initialisations, Stage 3 and a sample, through the verbs."""
    for init in inits:
        stage3 = {"recipe": "stage3_asymmetric_dmd", "init": init, "few_steps": 1}
        run = Resolver(scale).resolve("sample", SHORT | {"needs.student": stage3})
        for each in run.closure().values():
            execute(RunFolder.create(each, tmp_path))
        clips = open_shards(tmp_path / run.name / "shards")
        assert all(np.isfinite(clip["latents"]).all() for clip in clips) and len(clips) == 32
