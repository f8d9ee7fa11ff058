"""A set of exactly the wanted number of samples by any processes, or an error with the counts."""

import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_openvid import SECTION, digests, made, run_folder, table
from test_shard_work import completed, contents, folder, make, work
from videos import moving, openvid_folder

from datamodules.curation.decoding import ClipSpec, decode
from datamodules.curation.openvid import Limits, Row
from datamodules.curation.refusal import Refused
from datamodules.shards.reader import open_shards
from datamodules.shards.work import ShardMaker
from experiments.runs.recipe import resolve
from experiments.verbs import curate

# -- any source ------------------------------------------------------------------------------------


def accepted(count):
    """Keys of what `make` accepts of so many items."""
    return [f"{number:06d}" for number in range(count) if number % 7]


@settings(max_examples=30)
@given(
    count=st.integers(2, 30),
    per_shard=st.integers(1, 8),
    wanted=st.integers(1, 25),
    stops=st.lists(st.integers(1, 30), max_size=4),
    ahead=st.booleans(),
)
def test_the_first_that_were_accepted_are_the_set(
    tmp_path_factory, count, per_shard, wanted, stops, ahead
):
    """Whatever was made beyond them before, by whom and in whatever order."""
    assume(wanted <= len(accepted(count)))
    plain, other = (tmp_path_factory.mktemp(name) for name in ("plain", "other"))
    job = work(count, per_shard, wanted=wanted)
    completed(plain, job)
    if ahead:  # somebody made everything
        ShardMaker(work(count, per_shard), folder(other)).help()
    for stop in stops:
        done = []

        def make_some(numbers, stop=stop, done=done):
            for each in make(numbers):
                done.append(each)
                if len(done) == stop:
                    raise KeyboardInterrupt
                yield each

        with suppress(KeyboardInterrupt):
            ShardMaker(work(count, per_shard, make_some, wanted=wanted), folder(other)).make_all()
    assert completed(other, job) == contents(plain)
    shards = open_shards(plain / "shards")
    shards.verify()
    assert shards.keys == accepted(count)[:wanted]
    tars = {shard["file"] for shard in shards.manifest["shards"]}
    assert {path.name for path in (plain / "shards").glob("*.tar")} == tars


def test_a_cut_that_was_interrupted_is_made_again(tmp_path, monkeypatch):
    job = work(20, 4, wanted=9)
    plain = completed(tmp_path / "plain", job)
    path = tmp_path / "run"
    maker = ShardMaker(job, folder(path))
    maker.make_all()
    monkeypatch.setattr("datamodules.shards.shard_file.write_note", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # the shorter tar is in place, its note is not
        maker.complete()
    monkeypatch.undo()
    assert completed(path, job) == plain


def test_a_gap_is_filled_before_anything_is_made_behind_it(tmp_path):
    """A maker died in the first tar while others went on: no candidates without end."""
    numbers = []

    def noted(some):
        numbers.append(some[0])
        if len(numbers) == 1:
            company = ShardMaker(work(400, 4, noted, wanted=8), folder(tmp_path))
            assert company._make_next() and company._make_next()
            raise KeyboardInterrupt
        yield from make(some)

    with pytest.raises(KeyboardInterrupt):
        ShardMaker(work(400, 4, noted, wanted=8), folder(tmp_path)).make_all()
    completed(tmp_path, work(400, 4, noted, wanted=8))
    assert numbers == [0, 4, 8, 0]


def test_what_cannot_be_enough_is_refused_as_soon_as_it_is_known(tmp_path):
    looked_at = []

    def strict(numbers):
        for number, each in zip(numbers, make([7 * n for n in numbers]), strict=True):
            looked_at.append(number)
            yield each

    with pytest.raises(ValueError) as refused:
        completed(tmp_path, work(20, 4, strict, wanted=13))
    said = str(refused.value)
    assert (
        "curate.count: 13 prompts wanted; of 20 candidates 0 were accepted and 12 are left" in said
    )
    assert "refused: 8 seven" in said and f"remove {tmp_path}/shards to start again" in said
    assert looked_at == list(range(8)) and not (tmp_path / "shards" / "manifest.json").exists()
    with pytest.raises(ValueError, match="of 20 candidates 13 were accepted and 4 are left"):
        completed(tmp_path / "all", work(20, 4, wanted=18))


def test_progress_is_of_what_is_wanted(tmp_path):
    told = []
    run = folder(tmp_path)
    run.on_progress = lambda *said: told.append(said)
    maker = ShardMaker(work(20, 4, wanted=9), run)
    maker.make_all()
    maker.complete()
    assert told[-1] == (9, 9, "prompts") and all(done <= total == 9 for done, total, _ in told)


# -- OpenVid ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Twelve videos, every third of which is too short."""
    film, short = moving(14, fps=24, width=104), moving(5, width=104)
    films = {f"film{i}_0.mp4": short if i % 3 == 0 else film for i in range(12)}
    return openvid_folder(tmp_path_factory.mktemp("openvid"), films)


def test_refused_videos_are_replaced_by_the_next(tmp_path, source, wan_folder):
    few, many = (made(tmp_path / f"{n}", source, wan_folder, count=n) for n in (3, 8))
    both = [[s["info"]["video"] for s in open_shards(f.path / "shards")] for f in (few, many)]
    assert [len(names) for names in both] == [3, 8] and both[0] == both[1][:3]
    assert set(table(many)) == {f"film{i}_0.mp4" for i in (0, 3, 6, 9)}
    with pytest.raises(ValueError, match=r"9 clips wanted; of 12 .* \(refused: 4 too short\)"):
        made(tmp_path / "9", source, wan_folder, count=9)


def test_more_downloads_change_nothing_of_a_set_that_was_begun(
    tmp_path, source, wan_folder, caplog
):
    """A run was begun; then another part arrived, from which other videos would be chosen."""
    parts = openvid_folder(tmp_path / "in", {f"film{i}_0.mp4": b"" for i in range(12)})
    whole = (source / "OpenVid_part0.zip").read_bytes()
    (parts / "OpenVid_part0.zip").write_bytes(whole)
    late = parts / "OpenVid_part1.zip"
    late.unlink()
    run = run_folder(tmp_path / "run", parts, wan_folder, count=3, items_per_shard=2)
    ShardMaker(curate.plan(run.recipe, run), run).help()
    before = digests(run)
    late.write_bytes((source / "OpenVid_part1.zip").read_bytes())
    with caplog.at_level("INFO"):
        ShardMaker(curate.plan(run.recipe, run), run)
    assert digests(run) == before and "came after the set was begun" in caplog.text
    curate.run(run.recipe, run)
    videos = {sample["info"]["video"] for sample in open_shards(run.path / "shards")}
    with zipfile.ZipFile(parts / "OpenVid_part0.zip") as first:
        assert len(videos) == 3 and videos <= {Path(name).name for name in first.namelist()}


# -- one bad video ---------------------------------------------------------------------------------


def test_metadata_that_is_no_text_does_no_harm():
    """Real files name their authors in any encoding; what is in them is a film all the same."""
    film = moving(14, fps=24, width=104, title="by Jxxs")
    odd = film.replace(b"by Jxxs", b"by J\xfc\xffs")
    assert odd != film and b"\xfc\xff" in odd
    spec = ClipSpec(frames=9, fps=16, height=16, width=32, **SECTION["video"])
    assert (decode(odd, spec) == decode(film, spec)).all()


def hurt_zip(path, name, flag=0, method=None):
    """Say of a member that it is encrypted, or compressed by an unknown method."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as opened:
        local = opened.getinfo(name).header_offset
        central = data.index(b"PK\x01\x02", opened.start_dir)
        for each in opened.infolist():
            if each.filename == name:
                break
            central = data.index(b"PK\x01\x02", central + 4)
    for flags_at, method_at in ((local + 6, local + 8), (central + 8, central + 10)):
        data[flags_at] |= flag
        if method is not None:
            data[method_at] = method
    path.write_bytes(data)


def test_a_zip_member_that_cannot_be_read_is_one_refusal(tmp_path, wan_folder):
    film = moving(14, fps=24, width=104)
    source = openvid_folder(tmp_path / "in", {f"film{i}_0.mp4": film for i in range(6)})
    hurt_zip(source / "OpenVid_part0.zip", "some/where/film0_0.mp4", flag=1)
    hurt_zip(source / "OpenVid_part0.zip", "some/where/film2_0.mp4", method=77)
    run = made(tmp_path / "run", source, wan_folder, count=4)
    refused = table(run)
    assert {reason for reason, _ in refused.values()} == {"damaged"}
    assert (
        "RuntimeError: " in refused["film0_0.mp4"][1] and "encrypted" in refused["film0_0.mp4"][1]
    )
    assert "NotImplementedError: " in refused["film2_0.mp4"][1]
    assert len(open_shards(run.path / "shards")) == 4


# -- the recipe's lengths --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "fps", "enough"),
    [(120, 24, False), (121, 24, True), (150, 30, False), (82, 16, True)],
)
def test_the_recipes_shortest_length_is_that_of_81_frames(frames, fps, enough):
    """What would turn out too short is refused by the table, before it is decoded."""
    recipe = resolve("openvid_clips", "wan1.3b").recipe["curate"]
    limits = Limits(**recipe["limits"])
    row = Row("a.mp4", "word " * 9, 6.0, 8.0, 0.99, frames, fps, frames / fps, "")
    spec = ClipSpec(frames=81, fps=16, height=16, width=32, **SECTION["video"])
    video = moving(frames, fps=fps, width=104)
    if enough:
        limits.check(row)
        assert len(decode(video, spec)) == 81
        return
    with pytest.raises(Refused, match="too short"):
        decode(video, spec)
    with pytest.raises(Refused, match="table: seconds"):
        limits.check(row)
