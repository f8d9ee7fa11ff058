"""OpenVid from zip parts to shards, on videos that an encoder made and a tiny Wan folder."""

import csv
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
import videos
from omegaconf import OmegaConf
from videos import moving, openvid_folder, row, write_table

from datamodules.curation.openvid import Item, decode_item
from datamodules.curation.split import number_of, split_of
from datamodules.shards.reader import open_shards
from datamodules.shards.work import ShardMaker
from experiments.generation.codec import autoencoder_of
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import resolve
from experiments.verbs import curate
from experiments.worlds.wan import openvid
from experiments.worlds.wan.clip_spec import clip_spec

SHAPE = [3, 16, 2, 4]  # 9 frames of 16 x 32 pixels
SECTION = {
    "clip_shape": SHAPE,
    "count": 7,
    "heldout_percent": 0,
    "items_per_shard": 4,
    "limits": {"aesthetic": 4.5, "motion": [1.0, 60.0], "words": 3},
    "video": {"aspect": [1.6, 2.1], "enlarge": 1.0, "least_fps": 16},
    "vae_dtype": "float32",
    "text_dtype": "float32",
}


@pytest.fixture(scope="module")
def films():
    """Ten videos, three of which will not do; a dot in a name is none of webdataset's."""
    good = {f"film{i}_{i}.v1.mp4": moving(14 + i, fps=24, width=104) for i in range(7)}
    short = {"short_0.mp4": moving(8, width=104)}
    square = {"square_0.mp4": moving(20, width=56)}
    return good | short | square | {"cut_0.mp4": good["film0_0.v1.mp4"][:-300]}


@pytest.fixture(scope="module")
def source(tmp_path_factory, films):
    """The folder; four rows of its table are refused by what the table says."""
    bad = [
        row("ugly.mp4", **{"aesthetic score": 3.9}),
        row("still.mp4", **{"motion score": "0.2"}),
        row("nowhere.mp4"),
        row("film1_1.v1.mp4", caption="once more, with another caption"),
        row("torn.mp4", **{"aesthetic score": "5.1 or so"}),
        row("silent.mp4", caption="hm"),
    ]
    rows = [row(name, caption=f"this is the film {name}") for name in films]
    return openvid_folder(tmp_path_factory.mktemp("openvid"), films, rows + bad)


def run_folder(path, source, wan, launch=None, **changes):
    recipe = {
        "recipe": "openvid_clips",
        "verb": "curate",
        "seed": 0,
        "needs": {"videos": f"{source}", "wan": f"{wan}"},
        "curate": {"source": "openvid", "table": "OpenVid-1M.csv", "split": "train", "fps": 16}
        | SECTION
        | changes,
        "launch": {"accelerator": "cpu"} | (launch or {}),
    }
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(recipe)))
    return RunFolder(path)


def made(*arguments, **changes):
    folder = run_folder(*arguments, **changes)
    curate.run(folder.recipe, folder)
    return folder


def digests(folder):
    files = (folder.path / "shards").iterdir()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def table(folder):
    with open(folder.path / "refused.csv", newline="") as file:
        return {line["name"]: (line["reason"], line["detail"]) for line in csv.DictReader(file)}


@pytest.fixture(scope="module")
def clips(tmp_path_factory, source, wan_folder):
    return made(tmp_path_factory.mktemp("runs") / "clips", source, wan_folder)


def test_clips_are_what_the_encoders_make_of_the_videos(clips, films):
    shards = open_shards(clips.path / "shards")
    manifest = shards.manifest
    assert manifest["fields"]["latents"] == {"shape": SHAPE, "dtype": "float16"}
    assert manifest["fields"]["text"] == {"shape": [512, 32], "dtype": "float16"}
    assert (manifest["fps"], manifest["kind"], manifest["candidates"]) == (16, "clips", 10)
    vae = autoencoder_of(manifest)
    assert manifest["normalisation"] == {"mean": vae.mean, "std": vae.std}
    assert len(shards) == 7 == len({sample["key"] for sample in shards})
    for sample in shards:
        name = sample["info"]["video"]
        wanted = clip_spec((9, 16, 32), 16, SECTION["video"])
        clip = torch.from_numpy(videos.decode(films[name], wanted))
        np.testing.assert_array_equal(
            sample["latents"], vae.encode(clip[None])[0].numpy().astype("f2")
        )
        assert sample["caption"] == f"this is the film {name}"
        assert sample["info"]["motion"] == 8.0 and sample["info"]["camera_motion"] == "pan_left"
        assert 3 < np.any(sample["text"], axis=1).sum() < 100
    assert shards.negative.shape == (512, 32)
    assert shards.bytes < 7 * 60_000, "a caption is stored without its padding"


def test_everything_refused_is_listed_and_counted(clips):
    refused = table(clips)
    assert refused["ugly.mp4"] == ("table: aesthetic", "3.9 is below 4.5")
    assert refused["still.mp4"] == ("table: motion", "0.2 is not in 1..60")
    assert refused["torn.mp4"] == ("table: aesthetic: no score", "nan is no number")
    assert refused["silent.mp4"] == ("table: caption", "fewer than 3 words")
    assert refused["film1_1.v1.mp4"][0] == "table: repeated"
    assert refused["nowhere.mp4"][0] == "absent"
    assert refused["short_0.mp4"][0] == "too short" and "8 frames" in refused["short_0.mp4"][1]
    assert refused["square_0.mp4"] == ("aspect", "1.000 is not in 1.600..2.100")
    assert refused["cut_0.mp4"][0] == "damaged"
    counts = open_shards(clips.path / "shards").manifest["refused"]
    assert counts["too short"] == counts["aspect"] == counts["damaged"] == 1
    assert sum(counts.values()) == len(refused) == 9
    assert clips.read_record()["counters"] == {"clips": 7, "refused": 9}
    assert {path.suffix for path in (clips.path / "shards").iterdir()} == {".tar", ".json", ".npy"}


def test_workers_change_nothing_and_a_dead_one_loses_one_video(
    tmp_path, films, wan_folder, clips, source, monkeypatch
):
    together = made(tmp_path / "together", source, wan_folder, {"workers": 2})
    assert digests(together) == digests(clips)
    some = {name: films[name] for name in list(films)[:3]} | {"killer_0.mp4": films["square_0.mp4"]}
    monkeypatch.setattr(openvid, "decode_item", videos.decode_or_die)
    folder = openvid_folder(tmp_path / "killer", some)
    survived = made(tmp_path / "survived", folder, wan_folder, {"workers": 2}, count=3)
    assert len(open_shards(survived.path / "shards")) == 3
    assert table(survived)["killer_0.mp4"][0] == "decoder died"


def test_an_interrupted_run_goes_on_and_others_may_help(
    tmp_path, source, wan_folder, clips, monkeypatch
):
    decoded = []

    def decode_some(item: Item):
        decoded.append(item.row.video)
        if len(decoded) == 6:
            raise KeyboardInterrupt
        return decode_item(item)

    monkeypatch.setattr(openvid, "decode_item", decode_some)
    folder = run_folder(tmp_path / "run", source, wan_folder)
    with pytest.raises(KeyboardInterrupt):
        curate.run(folder.recipe, folder)
    assert not (folder.path / "shards" / "manifest.json").exists()
    helper = ShardMaker(curate.plan(folder.recipe, folder), folder)
    assert helper.help() == 2 and helper.help() == 0
    assert len(decoded) == 6 + 6, "the first four were not decoded again"
    curate.run(folder.recipe, folder)
    curate.run(folder.recipe, folder)  # killed after the manifest, before the run was done
    assert len(decoded) == 12
    assert digests(folder) == digests(clips)
    assert table(folder) == table(clips)


def test_tars_of_another_encoder_are_not_gone_on_with(tmp_path, source, wan_folder):
    wan = shutil.copytree(wan_folder, tmp_path / "wan")
    folder = run_folder(tmp_path / "run", source, wan, count=2, items_per_shard=1)
    ShardMaker(curate.plan(folder.recipe, folder), folder).help()
    config = json.loads((wan / "vae" / "config.json").read_text())
    config["latents_std"][0] *= 2
    (wan / "vae" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="begun with other settings, encoders or data"):
        curate.run(folder.recipe, folder)


def test_splits_share_no_recording_and_more_extends_fewer(tmp_path, wan_folder, films):
    film = films["film0_0.v1.mp4"]
    names = [f"tape{i}_{part}_0to9.mp4" for i in range(12) for part in range(2)]
    source = openvid_folder(tmp_path / "in", dict.fromkeys(names, film))
    chosen = {}
    for split, count in (("train", 4), ("train", 6), ("heldout", 4)):
        changes = {"split": split, "count": count, "heldout_percent": 50}
        folder = made(tmp_path / f"{split}{count}", source, wan_folder, **changes)
        shards = open_shards(folder.path / "shards")
        chosen[split, count] = [sample["info"]["video"] for sample in shards]
    assert chosen["train", 6][:4] == chosen["train", 4]
    tapes = {key: {name.split("_")[0] for name in names} for key, names in chosen.items()}
    assert not tapes["train", 6] & tapes["heldout", 4]
    assert {split_of(tape, 50) for tape in tapes["heldout", 4]} == {"heldout"}
    assert number_of("a", 1) != number_of("a1")


def test_missing_columns_tables_videos_and_numbers_are_named(tmp_path, source, wan_folder, films):
    def refuse(error, folder, message, **changes):
        path = tmp_path / hashlib.sha256(f"{folder}{changes}".encode()).hexdigest()[:8]
        with pytest.raises(error, match=message):
            made(path, folder, wan_folder, **changes)

    refuse(ValueError, source, "11 videos wanted, .* has 10 of split train", count=11)
    refuse(FileNotFoundError, source, r"no such table; .* has OpenVid-1M\.csv", table="HD.csv")
    refuse(FileNotFoundError, tmp_path / "gone", "gone: no such folder of videos")
    refuse(ValueError, source, "8 channels, the VAE of .* has 16", clip_shape=[3, 8, 2, 4])
    empty = tmp_path / "empty"
    empty.mkdir()
    refuse(FileNotFoundError, empty, r"neither videos \(\.mp4.*download OpenVid_part")
    broken = shutil.copytree(source, tmp_path / "broken")
    columns = ("video", "caption", "fps", "frame", "seconds", "camera motion", "aesthetic score")
    write_table(broken / "OpenVid-1M.csv", [row("a.mp4")], columns)
    refuse(
        ValueError,
        broken,
        "no column 'motion score', 'temporal consistency score'; it has 'video', 'caption'",
    )
    whole = (broken / "OpenVid_part1.zip").read_bytes()
    (broken / "OpenVid_part1.zip").write_bytes(whole[: len(whole) // 2])
    refuse(ValueError, broken, r"OpenVid_part1\.zip: cut off or no zip .*download it again", fps=15)
    (broken / "OpenVid_part1.zip").unlink()
    (broken / "OpenVid_part73_partaa").write_bytes(b"half")
    refuse(ValueError, broken, r"cat OpenVid_part73_part\* > OpenVid_part73\.zip", fps=14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "curate.split: 'test' is none of train, heldout"),
        ({"count": 0}, "curate.count: 0 must be at least 1"),
        ({"heldout_percent": 200.0}, "curate.heldout_percent: 200"),
        ({"vae_dtype": "float16"}, "curate.vae_dtype: 'float16' is none of float32, bfloat16"),
        ({"limits": {"motoin": [1, 2]}}, "curate.limits.motoin: .*motion"),
        ({"limits": {"motion": [3, 2]}}, "is no range"),
        ({"video": {"aspect": [1, 2], "enlarge": 1.0}}, "curate.video.least_fps is missing"),
        ({"video": SECTION["video"] | {"fps": 2}}, "curate.video.fps: .*remove it"),
        ({"video": SECTION["video"] | {"aspect": 2}}, "curate.video.aspect: 2 must be a list of 2"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_read(change, message):
    recipe = resolve("openvid_clips", "wan1.3b").recipe
    recipe["curate"] |= change
    with pytest.raises(ValueError, match=message):
        curate.check(recipe)
