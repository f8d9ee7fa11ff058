"""The verb curate on the tiny world: what it writes, and that its parts are consistent."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from datamodules.shards.reader import open_shards
from experiments.generation.codec import autoencoder_of
from experiments.runs.folder import RunFolder
from experiments.verbs import curate
from experiments.worlds.digits.moving_digits import World, attributes_of, words

LAW = {"size": 32, "frames": 8, "fps": 8, "sprite": 16, "slow": 1.25, "fast": 3.0}
LAW |= {"turn": 0.25, "still": 0.1, "spread": 8.0}
SECTION = {
    "source": "moving_digits",
    "split": "train",
    "kind": "clips",
    "count": 20,
    "world": LAW,
    "latents": {"kept": 16},
    "text": {"words": words(), "length": 12, "dim": 32, "seed": 0},
    "negative_prompt": "",
    "statistics": 64,
}


def recipe(**changes):
    return {
        "recipe": "clips",
        "verb": "curate",
        "seed": 0,
        "needs": {},
        "curate": SECTION | changes,
    }


def made(path, **changes):
    path.mkdir()
    (path / "recipe.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(recipe(**changes))))
    folder = RunFolder(path)
    curate.check(folder.recipe)
    curate.run(folder.recipe, folder)
    return open_shards(path / "shards")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return made(tmp_path_factory.mktemp("runs") / "clips")


def test_clips_have_latents_text_and_truth(clips):
    assert len(clips) == 20
    manifest = clips.manifest
    assert manifest["fields"]["latents"] == {"shape": [8, 16, 4, 4], "dtype": "float16"}
    assert manifest["fields"]["text"] == {"shape": [12, 32], "dtype": "float32"}
    assert manifest["fields"]["state"] == {"shape": [8, 4], "dtype": "float32"}
    assert "video" not in manifest["fields"]
    assert manifest["fps"] == 8 and manifest["world"] == LAW
    assert clips.negative.shape == (12, 32)
    for number, sample in enumerate(clips):
        clip = World(**LAW).clip(0, "train", number)
        assert attributes_of(sample["caption"]) == clip.attributes
        assert sample["info"]["attributes"] == clip.attributes.as_dict()
        np.testing.assert_array_equal(sample["state"], clip.states)
        np.testing.assert_array_equal(sample["ground"], clip.ground.seen(32))


def test_latents_are_normalised_and_decode_to_the_clip(clips):
    latents = np.stack([sample["latents"] for sample in clips]).astype(np.float32)
    assert abs(latents.mean()) < 0.1 and abs(latents.std() - 1) < 0.1
    decoded = autoencoder_of(clips.manifest).decode(torch.from_numpy(latents)).numpy()
    truth = np.stack([World(**LAW).clip(0, "train", i).video for i in range(20)])
    error = ((decoded.astype(float) - truth) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 34


def test_a_changed_autoencoder_is_noticed(clips):
    manifest = json.loads(json.dumps(clips.manifest))
    manifest["normalisation"]["std"] *= 1.01
    with pytest.raises(ValueError, match="curate the set again"):
        autoencoder_of(manifest)
    manifest["autoencoder"]["class"] = "Other"
    with pytest.raises(ValueError, match="autoencoder 'Other' in the manifest is unknown"):
        autoencoder_of(manifest)


def test_equal_captions_have_equal_text_and_others_differ(clips):
    text = {sample["caption"]: sample["text"] for sample in clips}
    assert len({array.tobytes() for array in text.values()}) == len(text) > 10
    for sample in clips:
        np.testing.assert_array_equal(sample["text"], text[sample["caption"]])
        words = len(sample["caption"].replace(",", " ,").split()) + 1  # and the end mark
        assert not sample["text"][words:].any() and sample["text"][:words].any(axis=1).all()


def test_other_splits_and_kinds_share_encoders_and_statistics(tmp_path, clips):
    heldout = made(tmp_path / "a", split="heldout", count=5)
    prompts = made(tmp_path / "b", split="heldout", kind="prompts", count=5)
    videos = made(tmp_path / "c", split="heldout", kind="videos", count=5)
    for shards in (heldout, prompts, videos):
        for name in ("normalisation", "autoencoder", "text_encoder", "fps"):
            assert shards.manifest[name] == clips.manifest[name]
    assert (
        set(heldout.fields) == {"latents", "state", "ground", "text", "video"} == set(videos.fields)
    )
    assert prompts.fields == ("text",)
    for clip, prompt, video in zip(heldout, prompts, videos, strict=True):
        assert clip["key"] == prompt["key"]
        assert clip["info"]["attributes"] == prompt["info"]["attributes"]
        np.testing.assert_array_equal(clip["text"], prompt["text"])
        np.testing.assert_array_equal(clip["video"], video["video"])


def test_more_clips_extend_fewer_and_equal_recipes_give_equal_bytes(tmp_path, clips):
    longer = made(tmp_path / "longer", count=25)
    for i in range(20):
        np.testing.assert_array_equal(longer[i]["latents"], clips[i]["latents"])
    assert made(tmp_path / "again").fingerprint == clips.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "curate.split: 'test' is none of train, heldout"),
        ({"kind": "pairs"}, "curate.kind: 'pairs' is none of"),
        ({"source": "opnevid"}, "curate.source: 'opnevid' is none of"),
        ({"count": 0}, "curate.count: 0"),
        ({"count": "many"}, "curate.count: 'many' must be a whole number"),
        ({"cuont": 3}, "curate.cuont: .*count"),
        ({"world": LAW | {"trun": 0.5}}, "curate.world.trun: .*turn"),
        ({"world": LAW | {"fast": 30.0}}, "world: speeds"),
        ({"latents": {"kept": 17}}, "kept: 17 is not a square"),
        ({"latents": {}}, "curate.latents.kept is missing"),
        ({"text": {"words": words(), "lenght": 12}}, "curate.text.lenght: .*length"),
        ({"text": {"words": words()[2:]}}, r"curate.text.words: captions also have \[',', 'a'\]"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_made(change, message):
    with pytest.raises(ValueError, match=message):
        curate.check(recipe(**change))
