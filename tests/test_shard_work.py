"""Several processes make one set: claims, leftovers, progress messages."""

import errno
import fcntl
import os
import socket

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.curation.refusal import Refusal, Refused, counted
from datamodules.shards import claims
from datamodules.shards import work as shard_work
from datamodules.shards.claims import Claims
from datamodules.shards.reader import open_shards
from datamodules.shards.work import ShardMaker, Work
from experiments.runs.folder import RunFolder


def sample(number):
    text = np.random.default_rng(number).standard_normal((3, 2)).astype(np.float16)
    return f"{number:06d}", {"text": text}, {"caption": f"prompt {number}"}


def make(numbers):
    for number in numbers:
        yield Refusal(f"{number}", "seven") if number % 7 == 0 else sample(number)


def work(count=23, per_shard=4, make=make, **changes):
    settings = {"kind": "prompts", "about": {"fps": 16}, "items": range(count), "make": make}
    settings |= {"items_per_shard": per_shard, "negative": lambda: np.zeros((3, 2), np.float32)}
    return Work(**settings | changes)


def folder(path):
    path.mkdir(parents=True, exist_ok=True)
    return RunFolder(path)


def completed(path, job=None):
    maker = ShardMaker(job or work(), folder(path))
    maker.make_all()
    maker.complete()
    return contents(path)


def contents(path):
    return {p.name: p.read_bytes() for p in [*(path / "shards").iterdir(), path / "refused.csv"]}


@settings(max_examples=20)
@given(
    count=st.integers(1, 30),
    per_shard=st.integers(1, 8),
    stops=st.lists(st.integers(1, 30), max_size=4),
)
def test_stops_and_makers_leave_no_trace(tmp_path_factory, count, per_shard, stops):
    plain, stopped = (tmp_path_factory.mktemp(name) for name in ("plain", "stopped"))
    if count == 1:  # number 0 is refused, and a set of nothing is none
        with pytest.raises(ValueError, match="nothing was written"):
            completed(plain, work(count, per_shard))
        return
    for stop in stops:
        made = []

        def make_some(numbers, stop=stop, made=made):
            for each in make(numbers):
                made.append(each)
                if len(made) == stop:
                    raise KeyboardInterrupt
                yield each

        try:
            ShardMaker(work(count, per_shard, make_some), folder(stopped)).make_all()
        except KeyboardInterrupt:
            assert not list((stopped / "shards").glob("*.part"))
    job = work(count, per_shard)
    assert completed(stopped, job) == completed(plain, job)
    shards = open_shards(plain / "shards")
    shards.verify()
    assert [s["key"] for s in shards] == [f"{i:06d}" for i in range(count) if i % 7]


def test_what_one_is_making_another_leaves_alone(tmp_path):
    inside = []

    def make_with_company(numbers):
        for each in make(numbers):
            if not inside:
                inside.append(numbers[0])
                company = ShardMaker(work(), folder(tmp_path / "both"))
                inside.append(company.help())
            yield each

    both = completed(tmp_path / "both", work(make=make_with_company))
    assert inside == [0, 5], "of six tars the first was taken"
    assert both == completed(tmp_path / "one")
    assert set(both) == {"manifest.json", "index.json", "negative.npy", "refused.csv"} | {
        f"{number:06d}.tar" for number in range(6)
    }


def test_one_waits_for_the_others_and_takes_over_what_they_leave(tmp_path, monkeypatch):
    """The holder of a claim dies while we wait: its tar is ours."""
    path = tmp_path / "run"
    (path / "shards").mkdir(parents=True)
    claim = open(path / "shards" / "000002.claim", "wb")  # noqa: SIM115 - dies below
    fcntl.flock(claim, fcntl.LOCK_EX)
    naps = []

    def nap(seconds):
        naps.append(len(list((path / "shards").glob("*.tar"))))
        claim.close()

    monkeypatch.setattr(shard_work.time, "sleep", nap)
    assert completed(path) == completed(tmp_path / "plain")
    assert naps == [5]


def test_a_tar_that_was_finished_before_the_claim_is_not_made_again(tmp_path, monkeypatch):
    made, flock = [], fcntl.flock

    def counted_make(numbers):
        made.append(numbers[0])
        yield from make(numbers)

    def flock_late(*arguments):
        monkeypatch.setattr(claims.fcntl, "flock", flock)
        ShardMaker(work(make=counted_make), folder(tmp_path)).help()
        flock(*arguments)

    monkeypatch.setattr(claims.fcntl, "flock", flock_late)
    ShardMaker(work(make=counted_make), folder(tmp_path)).make_all()
    assert made == [0, 4, 8, 12, 16, 20]


def test_a_late_helper_finds_nothing_to_do(tmp_path):
    before = completed(tmp_path)
    assert ShardMaker(work(), folder(tmp_path)).help() == 0
    assert contents(tmp_path) == before
    (tmp_path / "shards" / "000001.claim").touch()  # of one that died while the set was completed
    (tmp_path / "shards" / "000001.tar.there-17.part").touch()
    assert completed(tmp_path) == before


def test_an_error_of_ours_stops_the_run(tmp_path):
    def broken(numbers):
        yield sample(numbers[0])
        raise Refused("nobody", "caught this")

    with pytest.raises(Refused):
        ShardMaker(work(make=broken), folder(tmp_path)).make_all()
    assert not list((tmp_path / "shards").glob("*.tar*"))


def test_progress_tells_how_long(tmp_path, monkeypatch, caplog):
    now = [0.0]

    def slowly(numbers):
        for each in make(numbers):
            now[0] += 2.0
            yield each

    monkeypatch.setattr(shard_work.time, "monotonic", lambda: now[0])
    told = []
    run = folder(tmp_path)
    run.on_progress = lambda *said: told.append(said)
    caplog.set_level("INFO")
    maker = ShardMaker(work(3700, 100, slowly), run)
    assert maker.help() == 37
    assert told[0] == (1, 3700, "prompts") and told[1] == (2, 3700, "prompts, 2:03:16 to go")
    assert told[1799] == (1800, 3700, "prompts, 1:03:20 to go")
    lines = [record.message for record in caplog.records]
    assert lines[0] == "6 of 3700 prompts, 2:03:08 to go" and len(lines) == 3700 // 6
    maker.complete()
    assert told[-1] == (3700, 3700, "prompts")
    assert "3171 prompts; refused: 529 seven" in caplog.text


def test_a_batch_that_has_only_begun_to_come_does_not_say_how_long_the_rest_takes(
    tmp_path, monkeypatch
):
    """Pairs come in batches of 100, each after 50 s: 1000 take 500 s, also seen from the first."""
    now = [0.0]

    def in_batches(numbers):
        now[0] += 50.0
        for each in make(numbers):
            now[0] += 0.001
            yield each

    monkeypatch.setattr(shard_work.time, "monotonic", lambda: now[0])
    told = []
    run = folder(tmp_path)
    run.on_progress = lambda *said: told.append(said)
    assert ShardMaker(work(1000, 100, in_batches), run).help() == 10
    assert told[0] == (1, 1000, "prompts")
    assert [note for _, _, note in told[1:3]] == [
        "prompts, 0:07:30 to go",
        "prompts, 0:06:40 to go",
    ]


def test_refusals_before_and_after_are_told_together(tmp_path):
    early = [Refusal("a, b", "odd", 'said "no"'), Refusal("c", "odd")]
    completed(tmp_path, work(8, refused=early))
    assert (tmp_path / "refused.csv").read_text().splitlines() == [
        "name,reason,detail",
        '"a, b",odd,"said ""no"""',
        "c,odd,",
        "0,seven,",
        "7,seven,",
    ]
    manifest = open_shards(tmp_path / "shards").manifest
    assert manifest["refused"] == {"odd": 2, "seven": 2} and manifest["candidates"] == 8
    assert counted(early) == "2 odd" and counted([]) == "none"


def test_work_without_items_is_refused():
    with pytest.raises(ValueError, match="nothing to curate; refused: 1 odd"):
        work(0, refused=[Refusal("a", "odd")])
    with pytest.raises(ValueError, match="items_per_shard is 0; at least 1"):
        work(3, 0)


def test_where_there_are_no_locks_all_make_all(tmp_path, monkeypatch):
    """Two makers may make one tar twice; it is the same tar."""

    def no_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    whole = completed(tmp_path / "whole")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    helper = ShardMaker(work(), folder(tmp_path / "shared"))
    with helper._claims.take(0) as mine:
        assert mine and completed(tmp_path / "shared") == whole
    assert helper.help() == 0
    assert contents(tmp_path / "shared") == whole


def test_waiting_for_another_process_says_for_whom(tmp_path, monkeypatch):
    """It may be stuck, and everybody else would wait with it."""
    monkeypatch.setattr(shard_work, "WAITED_S", 0.0)
    maker = ShardMaker(work(count=3), folder(tmp_path))
    other = Claims(tmp_path / "shards")

    def rest(seconds):
        raise KeyboardInterrupt  # the others' shard is never finished here

    monkeypatch.setattr(shard_work.time, "sleep", rest)
    said = []
    monkeypatch.setattr(shard_work.log, "info", lambda form, *words: said.append(form % words))
    monkeypatch.setattr(maker, "_say", lambda *_: "waiting" in "".join(said) and rest(0))
    with other.take(0), pytest.raises(KeyboardInterrupt):
        maker.make_all()
    assert said[-1] == f"waiting for shard 0 of process {os.getpid()} on {socket.gethostname()}"
