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

from datamodules.curation.openvid import Item, Limits, decode_item, read_table
from datamodules.curation.refusal import Refused
from datamodules.curation.split import number_of, split_of
from datamodules.shards.reader import open_shards
from datamodules.shards.work import ShardMaker
from experiments.generation.codec import autoencoder_of
from experiments.runs.folder import RunFolder
from experiments.runs.recipe import resolve
from experiments.verbs import curate
from experiments.worlds.wan import openvid

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
        wanted = openvid._spec((9, 16, 32), 16, SECTION["video"])
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
        ({"count": 0}, "curate.count: 0 clips; at least 1"),
        ({"heldout_percent": 200.0}, "curate.heldout_percent: 200"),
        ({"vae_dtype": "float16"}, "curate.vae_dtype: 'float16' is none of float32, bfloat16"),
        ({"limits": {"motoin": [1, 2]}}, "curate.limits.motoin: .*motion"),
        ({"limits": {"motion": [3, 2]}}, "is no range"),
        ({"video": {"aspect": [1, 2], "enlarge": 1.0}}, "curate.video.least_fps is missing"),
        ({"video": SECTION["video"] | {"fps": 2}}, "curate.video.fps: .*remove it"),
        ({"video": SECTION["video"] | {"aspect": 2}}, "curate.video.aspect: 2 is not a valid"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_read(change, message):
    recipe = resolve("openvid_clips", "wan1.3b").recipe
    recipe["curate"] |= change
    with pytest.raises(ValueError, match=message):
        curate.check(recipe)


def rows_of(names, **changes):
    return [row(name, caption=f"this is the film {name}", **changes) for name in names]


def test_files_that_cannot_be_read_are_refused_and_mended_ones_go_on(
    tmp_path, films, wan_folder, caplog
):
    """Of a set that was begun neither a mended file nor a removed one forfeits finished shards."""
    source, film = tmp_path / "in", films["film0_0.v1.mp4"]
    source.mkdir()
    names = [f"a{number}_0.mp4" for number in range(9)]
    for name in names[2:]:
        (source / name).write_bytes(film)
    (source / names[0]).symlink_to(tmp_path / "gone.mp4")
    (source / names[1]).mkdir()
    write_table(source / "OpenVid-1M.csv", rows_of([*names, "late_0.mp4"]))
    changes = {"count": 6, "items_per_shard": 1}
    straight = made(tmp_path / "straight", source, wan_folder, **changes)
    broken = {key: why for key, why in table(straight).items() if why[0] != "absent"}
    assert {why[0] for why in broken.values()} <= {"unreadable"} and set(broken) <= set(names[:2])
    assert len(open_shards(straight.path / "shards")) == 6

    folder = run_folder(tmp_path / "run", source, wan_folder, **changes)
    maker = ShardMaker(curate.plan(folder.recipe, folder), folder)
    for _ in range(3):
        maker._make_next()
    before = digests(folder)
    undecided = maker._work.items[3:]
    (source / names[1]).rmdir()  # taken away
    (source / names[0]).unlink()
    (source / names[0]).write_bytes(film)  # mended
    healthy = next(item.row.video for item in undecided if item.row.video in names[2:])
    (source / healthy).unlink()
    (source / "late_0.mp4").write_bytes(film)
    curate.run(folder.recipe, folder)
    after = digests(folder)
    tars = [name for name in before if name.endswith(".tar")]
    assert tars and all(after[name] == before[name] for name in tars)
    assert table(folder)[healthy][0] == "unreadable"
    made_of = {sample["info"]["video"] for sample in open_shards(folder.path / "shards")}
    assert "late_0.mp4" not in made_of and healthy not in made_of and len(made_of) == 6
    assert "1 videos came after the set was begun (such as late_0.mp4)" in caplog.text


def test_before_the_first_shard_new_videos_are_taken(tmp_path, films, wan_folder):
    source = openvid_folder(tmp_path / "in", {"a_0.mp4": films["film0_0.v1.mp4"]})
    folder = run_folder(tmp_path / "run", source, wan_folder, count=1)
    assert len(curate.plan(folder.recipe, folder).items) == 1
    openvid_folder(source, dict.fromkeys(("a_0.mp4", "b_0.mp4"), films["film0_0.v1.mp4"]))
    assert len(curate.plan(folder.recipe, folder).items) == 2


def test_a_table_without_a_candidate_of_a_begun_set_is_refused(tmp_path, films, wan_folder):
    names = ["a_0.mp4", "b_0.mp4"]
    source = openvid_folder(tmp_path / "in", dict.fromkeys(names, films["film0_0.v1.mp4"]))
    folder = run_folder(tmp_path / "run", source, wan_folder, count=2, items_per_shard=1)
    ShardMaker(curate.plan(folder.recipe, folder), folder)._make_next()
    write_table(source / "OpenVid-1M.csv", rows_of(["a_0.mp4", "c_0.mp4"]))
    with pytest.raises(ValueError, match="no longer has 'b_0' .1 of 2 .*remove .*shards to start"):
        curate.plan(folder.recipe, folder)


def test_the_published_layout_is_found(tmp_path, films, wan_folder):
    """Tables in data/train/, a linked folder, capitals in suffixes, a path in the table."""
    source, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (source / "data" / "train").mkdir(parents=True)
    (source / "linked").symlink_to(elsewhere)
    film = films["film0_0.v1.mp4"]
    for name in ("a_0.MP4", "b_0.mp4", "c_0.mp4"):
        (elsewhere / name).write_bytes(film)
    rows = rows_of(["a_0.mp4", "b_0.MP4", "OpenVid_part0/c_0.mp4"])
    write_table(source / "data" / "train" / "OpenVid-1M.csv", rows)
    shards = open_shards(made(tmp_path / "run", source, wan_folder, count=3).path / "shards")
    assert {sample["info"]["video"] for sample in shards} == {"a_0.mp4", "b_0.MP4", "c_0.mp4"}


def test_names_that_do_not_match_are_shown(tmp_path, films, wan_folder):
    source = openvid_folder(tmp_path / "in", {"a_0.mp4": films["film0_0.v1.mp4"]}, rows_of(["a_0"]))
    with pytest.raises(ValueError, match="named as 'a_0', the folder's as 'a_0.mp4'; lower it"):
        made(tmp_path / "run", source, wan_folder, count=1)


@pytest.mark.parametrize("score", ["nan", "", "inf", "-inf", "good", "5,5"])
@pytest.mark.parametrize(
    ("limit", "column"),
    [
        ({"aesthetic": 4.5}, "aesthetic score"),
        ({"motion": (1.0, 60.0)}, "motion score"),
        ({"consistency": 0.9}, "temporal consistency score"),
        ({"fps": 16.0}, "fps"),
        ({"seconds": 5.0}, "seconds"),
    ],
)
def test_a_score_that_is_none_refuses_where_a_limit_asks(tmp_path, limit, column, score):
    write_table(tmp_path / "table.csv", [row("a.mp4", **{column: score})])
    (found,) = read_table(tmp_path / "table.csv")
    with pytest.raises(Refused) as caught:
        Limits(**limit).check(found)
    assert caught.value.reason == f"table: {next(iter(limit))}: no score"
    Limits().check(found)


def test_a_score_that_the_table_lacks_is_stored_as_none(tmp_path, films, wan_folder):
    bare = rows_of(["a_0.mp4"], **{"aesthetic score": "", "motion score": "nan"})
    source = openvid_folder(tmp_path / "in", {"a_0.mp4": films["film0_0.v1.mp4"]}, bare)
    folder = made(tmp_path / "run", source, wan_folder, count=1, limits={})
    info = open_shards(folder.path / "shards")[0]["info"]
    assert info["aesthetic"] is None and info["motion"] is None


def test_a_row_with_too_few_fields_is_one_refusal(tmp_path):
    write_table(tmp_path / "table.csv", [row("a.mp4"), row("b.mp4")])
    text = (tmp_path / "table.csv").read_text()
    (tmp_path / "table.csv").write_text(text.rstrip()[:-25])
    first, cut = read_table(tmp_path / "table.csv")
    assert first.video == "a.mp4"
    assert (cut.name, cut.reason) == ("line-3", "table: fields") and "header 9" in cut.detail
