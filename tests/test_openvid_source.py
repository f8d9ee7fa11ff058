"""OpenVid's folder and table as they are found: layouts, names, scores, and files that change."""

import pytest
from test_openvid import digests, made, run_folder, table
from videos import moving, openvid_folder, row, write_table

from datamodules.curation.openvid import Limits, read_table
from datamodules.curation.refusal import Refused
from datamodules.shards.reader import open_shards
from datamodules.shards.work import ShardMaker
from experiments.verbs import curate

FILM = moving(14, fps=24, width=104)


def rows_of(names, **changes):
    return [row(name, caption=f"this is the film {name}", **changes) for name in names]


def test_files_that_cannot_be_read_are_refused_and_mended_ones_go_on(tmp_path, wan_folder, caplog):
    """Of a set that was begun neither a mended file nor a removed one forfeits finished shards."""
    source = tmp_path / "in"
    source.mkdir()
    names = [f"a{number}_0.mp4" for number in range(9)]
    for name in names[2:]:
        (source / name).write_bytes(FILM)
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
    (source / names[0]).write_bytes(FILM)  # mended
    healthy = next(item.row.video for item in undecided if item.row.video in names[2:])
    (source / healthy).unlink()
    (source / "late_0.mp4").write_bytes(FILM)
    curate.run(folder.recipe, folder)
    after = digests(folder)
    tars = [name for name in before if name.endswith(".tar")]
    assert tars and all(after[name] == before[name] for name in tars)
    assert table(folder)[healthy][0] == "unreadable"
    made_of = {sample["info"]["video"] for sample in open_shards(folder.path / "shards")}
    assert "late_0.mp4" not in made_of and healthy not in made_of and len(made_of) == 6
    assert "1 videos came after the set was begun (such as late_0.mp4)" in caplog.text


def test_before_the_first_shard_new_videos_are_taken(tmp_path, wan_folder):
    source = openvid_folder(tmp_path / "in", {"a_0.mp4": FILM})
    folder = run_folder(tmp_path / "run", source, wan_folder, count=1)
    assert len(curate.plan(folder.recipe, folder).items) == 1
    openvid_folder(source, dict.fromkeys(("a_0.mp4", "b_0.mp4"), FILM))
    assert len(curate.plan(folder.recipe, folder).items) == 2


def test_a_table_without_a_candidate_of_a_begun_set_is_refused(tmp_path, wan_folder):
    names = ["a_0.mp4", "b_0.mp4"]
    source = openvid_folder(tmp_path / "in", dict.fromkeys(names, FILM))
    folder = run_folder(tmp_path / "run", source, wan_folder, count=2, items_per_shard=1)
    ShardMaker(curate.plan(folder.recipe, folder), folder)._make_next()
    write_table(source / "OpenVid-1M.csv", rows_of(["a_0.mp4", "c_0.mp4"]))
    with pytest.raises(ValueError, match="no longer has 'b_0' .1 of 2 .*remove .*shards to start"):
        curate.plan(folder.recipe, folder)


def test_the_published_layout_is_found(tmp_path, wan_folder):
    """Tables in data/train/, a linked folder, capitals in suffixes, a path in the table."""
    source, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (source / "data" / "train").mkdir(parents=True)
    (source / "linked").symlink_to(elsewhere)
    for name in ("a_0.MP4", "b_0.mp4", "c_0.mp4"):
        (elsewhere / name).write_bytes(FILM)
    rows = rows_of(["a_0.mp4", "b_0.MP4", "OpenVid_part0/c_0.mp4"])
    write_table(source / "data" / "train" / "OpenVid-1M.csv", rows)
    shards = open_shards(made(tmp_path / "run", source, wan_folder, count=3).path / "shards")
    assert {sample["info"]["video"] for sample in shards} == {"a_0.mp4", "b_0.MP4", "c_0.mp4"}


def test_names_that_do_not_match_are_shown(tmp_path, wan_folder):
    source = openvid_folder(tmp_path / "in", {"a_0.mp4": FILM}, rows_of(["a_0"]))
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


def test_a_score_that_the_table_lacks_is_stored_as_none(tmp_path, wan_folder):
    bare = rows_of(["a_0.mp4"], **{"aesthetic score": "", "motion score": "nan"})
    source = openvid_folder(tmp_path / "in", {"a_0.mp4": FILM}, bare)
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
