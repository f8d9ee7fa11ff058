"""Prompts: what counts as the same one, limits, splits, and shards of them."""

import csv
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from datamodules.curation.split import split_of
from datamodules.curation.vidprom import UNSAFE, Prompt, PromptLimits, accept, read_prompts
from datamodules.shards.reader import open_shards
from datamodules.shards.work import ShardMaker
from experiments.runs.folder import RunFolder
from experiments.verbs import curate
from experiments.worlds.wan import vbench_prompts
from lightning_modules.networks.encoders import WanText

SCENES = [f"a {animal} walks over {place}" for animal in ("cat", "fox", "hen", "ox") for place in
          ("the grass", "wet sand", "a bridge at night", "snow", "an old roof")]  # fmt: skip


def table(path, lines, columns=("uuid", "prompt", "time", *UNSAFE)):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="0.01")
        writer.writeheader()
        writer.writerows(lines)
    return path


def run_folder(path, source, wan, **changes):
    section = {"source": "vidprom", "table": source.name, "split": "train", "heldout_percent": 0}
    section |= {"count": 20, "fps": 16, "limits": {"words": [2, 50], "unsafe": 0.2}}
    section |= {"text_dtype": "float32", "items_per_shard": 8} | changes
    needs = {"prompts": f"{source.parent}", "wan": f"{wan}"}
    recipe = {"recipe": "prompts", "verb": "curate", "seed": 0, "needs": needs, "curate": section}
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(recipe)))
    return RunFolder(path)


def made(path, source, wan, **changes):
    folder = run_folder(path, source, wan, **changes)
    curate.run(folder.recipe, folder)
    return open_shards(path / "shards")


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "filtered_extended.txt"
    path.write_text("\n".join([*SCENES, "", "  A cat -- walks over THE GRASS!  ", "short"]))
    return path


def test_a_text_file_becomes_shards_of_embeddings(tmp_path, lines, wan_folder):
    shards = made(tmp_path / "run", lines, wan_folder)
    assert shards.manifest["kind"] == "prompts" and shards.fields == ("text",)
    assert shards.manifest["refused"] == {"duplicate": 1, "words": 1}
    assert {sample["caption"] for sample in shards} == set(SCENES)
    assert [sample["caption"] for sample in shards] != SCENES, "a prefix is a random subset"
    encoder = WanText(wan_folder)
    assert shards.manifest["text_encoder"]["id"] == encoder.id
    for sample in shards:
        text = encoder.encode([sample["caption"]])[0].numpy()
        np.testing.assert_allclose(sample["text"], text, atol=2e-3)
        assert sample["info"]["name"] == f"line-{SCENES.index(sample['caption']) + 1}"


def test_how_many_videos_a_prompt_gets_is_stored_where_it_is_asked(
    tmp_path, wan_folder, monkeypatch
):
    """More for the first lines of VBench's own list; the prompts and their order stay."""
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "all_dimension.txt").write_text("".join(f"{scene}\n" for scene in SCENES))
    file = lists / "all_dimension_extended.txt"
    file.write_text("\r\n".join(f"{scene}, seen from afar" for scene in SCENES))
    plain = made(tmp_path / "plain", file, wan_folder)
    other = made(tmp_path / "other", file, wan_folder, videos=5, flickering_videos=25)
    assert [sample["info"]["videos"] for sample in other] == [5] * 20, "not VBench's list"
    digest = hashlib.sha256((lists / "all_dimension.txt").read_bytes()).hexdigest()
    monkeypatch.setattr(vbench_prompts, "SHA256", digest)
    monkeypatch.setattr(vbench_prompts, "FLICKERING", 3)
    own = made(tmp_path / "own", file, wan_folder, videos=5, flickering_videos=25)
    few = made(tmp_path / "few", file, wan_folder, videos=2)
    counts = {sample["info"]["name"]: sample["info"]["videos"] for sample in own}
    assert {name for name, count in counts.items() if count == 25} == {
        "line-1", "line-2", "line-3"
    }  # fmt: skip
    assert set(counts.values()) == {5, 25}
    assert {sample["info"]["videos"] for sample in few} == {2}
    assert plain.keys == other.keys == own.keys == few.keys
    assert not any("videos" in sample["info"] for sample in plain)
    assert own.manifest["videos"] == [5, 25] and few.manifest["videos"] == [2, 2]
    assert "videos" not in plain.manifest


def test_splits_are_disjoint_and_do_not_depend_on_the_rest_of_the_file(tmp_path, lines, wan_folder):
    halves = {"heldout_percent": 50, "count": 4}
    train = made(tmp_path / "train", lines, wan_folder, **halves)
    heldout = made(tmp_path / "heldout", lines, wan_folder, split="heldout", **halves)
    assert not set(train.keys) & set(heldout.keys)
    assert {split_of(key, 50) for key in train.keys} == {"train"}
    seen = [sample["caption"] for sample in train]
    lines.write_text("\n".join(SCENES[::-1]))
    again = made(tmp_path / "again", lines, wan_folder, **(halves | {"count": 3}))
    assert [sample["caption"] for sample in again] == seen[:3]


def test_other_prompts_are_not_gone_on_with(tmp_path, lines, wan_folder):
    """The file is another one now, and so are some of the chosen prompts."""
    folder = run_folder(tmp_path / "run", lines, wan_folder, count=10)
    ShardMaker(curate.plan(folder.recipe, folder), folder).help()
    lines.write_text(lines.read_text().replace("a cat", "one cat"))
    with pytest.raises(ValueError, match="begun with other settings, .* remove .* to start again"):
        curate.run(folder.recipe, folder)


def test_vidproms_table_has_scores(tmp_path):
    rows = [
        {"uuid": "u1", "prompt": "a calm lake"},
        {"uuid": "u2", "prompt": "something vile", "sexual_explicit": 0.9},
        {"uuid": "u3", "prompt": "nobody knows", "threat": "?"},
        {"uuid": "u4", "prompt": "A CALM, lake"},
        {"uuid": "u5", "prompt": "a line\nbreak, quoted"},
    ]
    path = table(tmp_path / "VidProM_unique.csv", rows)
    refused = []
    accepted = list(accept(read_prompts(path), PromptLimits((1, 9), 0.2), refused))
    assert [prompt.name for prompt in accepted] == ["u1", "u5"]
    assert [(each.name, each.reason, each.detail) for each in refused] == [
        ("u2", "unsafe", "0.900 is above 0.2"),
        ("u3", "unsafe: no score", "threat is '?'"),
        ("u4", "duplicate", "of u1"),
    ]
    everything = list(accept(read_prompts(path), PromptLimits((1, 9)), []))
    assert [prompt.name for prompt in everything] == ["u1", "u2", "u3", "u5"]


@pytest.mark.parametrize("score", ["nan", "", "-1", "1.5", "inf", "none"])
@pytest.mark.parametrize("name", UNSAFE)
def test_a_prompt_without_all_its_scores_is_refused_where_a_limit_asks(tmp_path, name, score):
    path = table(tmp_path / "t.csv", [{"uuid": "u", "prompt": "a calm lake", name: score}])
    refused = []
    assert not list(accept(read_prompts(path), PromptLimits((1, 9), 0.2), refused))
    found = [(each.reason, each.detail) for each in refused]
    assert found == [("unsafe: no score", f"{name} is {score!r}")]
    assert len(list(accept(read_prompts(path), PromptLimits((1, 9)), []))) == 1


def test_a_table_without_scores_is_refused_row_by_row_and_a_text_file_has_none(tmp_path, lines):
    path = table(tmp_path / "t.csv", [{"uuid": "u", "prompt": "a calm lake"}], ("uuid", "prompt"))
    limits, refused = PromptLimits((1, 9), 0.2), []
    assert not list(accept(read_prompts(path), limits, refused))
    assert refused[0].detail.startswith("no column toxicity, no column obscene")
    assert len(list(accept(read_prompts(lines), limits, []))) == len(SCENES) + 1


def test_rows_that_are_cut_are_refused_and_tables_that_swallow_rows_as_a_whole(tmp_path):
    path = table(tmp_path / "t.csv", [{"uuid": "u", "prompt": "a calm lake"}])
    path.write_text(path.read_text() + "v,a wild lake\n")
    refused = []
    assert [p.name for p in accept(read_prompts(path), PromptLimits((1, 9)), refused)] == ["u"]
    assert (refused[0].name, refused[0].reason) == ("line-3", "table: fields")
    path.write_text(path.read_text() + 'w,"a lake with a quote\nx,a lake\n')
    with pytest.raises(ValueError, match="t.csv: the record that begins in line 4 has a quote"):
        list(read_prompts(path))


def test_prompts_beyond_the_encoders_tokens_are_said(tmp_path, wan_folder, caplog):
    path = tmp_path / "list.txt"
    path.write_text("\n".join(["a cat walks " * 200, "a cat " * 260, "a cat walks"]))
    made(tmp_path / "run", path, wan_folder, count=3, limits={"words": [2, 1000]})
    assert WanText(wan_folder).beyond(["a cat walks " * 200]) == [601]
    assert (
        "2 of 3 captions have more than the 512 tokens of the text encoder (the longest 601)"
        in caplog.text
    )


def test_a_home_folder_is_found(tmp_path, lines, wan_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = run_folder(tmp_path / "run", lines, wan_folder)
    folder.recipe["needs"]["prompts"] = "~/."
    assert curate.plan(folder.recipe, folder).items


def test_bad_files_are_named(tmp_path, lines, wan_folder):
    with pytest.raises(FileNotFoundError, match="gone.txt: no such file; give VidProM_unique.csv"):
        list(read_prompts(tmp_path / "gone.txt"))
    other = table(tmp_path / "other.csv", [], ("id", "text"))
    with pytest.raises(ValueError, match="no column 'uuid', 'prompt'; it has 'id', 'text'"):
        list(read_prompts(other))
    with pytest.raises(ValueError, match="21 prompts wanted, .* has 20 .*1 duplicate, 1 words"):
        made(tmp_path / "run", lines, wan_folder, count=21)
    with pytest.raises(ValueError, match=r"limits.words: \(3, 2\) is no range"):
        PromptLimits((3, 2))
    for unsafe in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="limits.unsafe: .* is no probability"):
            PromptLimits((1, 2), unsafe)


words = st.lists(st.text("abcXYZé漢", min_size=1, max_size=5), min_size=1, max_size=6)


@given(words, st.sampled_from([" ", "  ", ", ", " - ", "\t"]), st.sampled_from(["", "!", " ."]))
def test_punctuation_case_and_spaces_do_not_count(words, between, end):
    plain = Prompt("a", " ".join(words))
    assert Prompt("b", between.join(words).upper() + end).key == plain.key
    assert Prompt("c", " ".join([*words, "other"])).key != plain.key


def test_prompts_of_signs_alone_are_not_all_the_same():
    assert Prompt("a", "!!!").key != Prompt("b", "???").key
