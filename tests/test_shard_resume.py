"""A stopped writer resumes with a bit-identical result; padding is restored."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.shards.npy_tar import with_padding, without_padding
from datamodules.shards.reader import ShardWriter, open_shards
from datamodules.shards.shard_set import ShardSet

ABOUT = {"fps": 8, "betas": (0, 1)}


class Killed(BaseException):
    """What no `except Exception` sees."""


def sample(i):
    arrays = {"text": np.random.default_rng(i).standard_normal((3, 2)).astype(np.float16)}
    return f"{i:06d}", arrays, {"caption": f"prompt {i}"}


def write(folder, count, *, stop=None, about=ABOUT, resume=True):
    """How many samples had to be written; `stop` is how many are before the end comes."""
    done = 0
    with ShardWriter(
        folder, "prompts", about=about, negative=np.ones((3, 2)), samples_per_shard=3, resume=resume
    ) as writer:
        for i in range(count):
            if f"{i:06d}" in writer.written:
                continue
            if done == stop:
                raise Killed
            writer.write(*sample(i))
            done += 1
    return done


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 11), stops=st.lists(st.integers(0, 11), max_size=4))
def test_however_often_a_writer_is_stopped_the_bytes_are_the_same(tmp_path_factory, count, stops):
    folder, plain = (tmp_path_factory.mktemp(name) for name in ("stopped", "plain"))
    write(plain, count, resume=False)
    for stop in stops:
        try:
            write(folder, count, stop=stop)
        except Killed:
            assert not (folder / "manifest.json").exists()
    write(folder, count)
    assert digests(folder) == digests(plain)
    assert [s["key"] for s in open_shards(folder)] == [f"{i:06d}" for i in range(count)]


def test_only_what_was_not_in_a_finished_tar_is_written_again(tmp_path):
    with pytest.raises(Killed):
        write(tmp_path, 10, stop=8)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("000000.json", "000000.tar", "000001.json", "000001.tar"),
    ]
    assert write(tmp_path, 10) == 10 - 6
    assert write(tmp_path, 10) == 0  # killed after the manifest, before the run was done


def test_a_damaged_tar_or_note_is_made_again(tmp_path):
    write(tmp_path / "plain", 9)
    for damage in ("000001.tar", "000001.json", "000000.json"):
        folder = tmp_path / damage
        with pytest.raises(Killed):
            write(folder, 9, stop=7)
        (folder / damage).write_bytes((folder / damage).read_bytes()[:-3])
        write(folder, 9)
        assert digests(folder) == digests(tmp_path / "plain")


def test_tars_of_other_settings_are_not_mixed_in(tmp_path):
    with pytest.raises(Killed):
        write(tmp_path, 9, stop=7)
    with pytest.raises(ValueError, match=r"000000\.json: this shard was begun with other.*remove"):
        write(tmp_path, 9, about={"fps": 16})
    assert write(tmp_path, 9, about={"fps": 16}, resume=False) == 9
    with pytest.raises(ValueError, match=r"manifest\.json: a set with another fps.* lies there"):
        write(tmp_path, 9)


def test_a_set_is_the_same_in_whatever_order_its_tars_are_made(tmp_path):
    for name, numbers in (("there", (0, 1, 2)), ("back", (2, 0, 1))):
        shards = ShardSet(tmp_path / name, "prompts", ABOUT)
        for number in numbers:
            shard = shards.start(number)
            if number != 1:  # a tar of which everything was refused
                shard.write(*sample(number))
            shard.finish(["refused"] * (number == 1))
        notes = [shards.finished(number) for number in range(3)]
        assert notes[1]["remarks"] == ["refused"] and not shards.complete
        shards.seal(notes, about={"refused": 1})
        assert shards.complete
    assert digests(tmp_path / "there") == digests(tmp_path / "back")
    reader = open_shards(tmp_path / "there")
    reader.verify()
    assert [s["key"] for s in reader.read_all(["text"])] == ["000000", "000002"]
    assert reader.manifest["refused"] == 1


def test_tars_that_do_not_belong_together_are_refused(tmp_path):
    shards = ShardSet(tmp_path, "prompts", ABOUT)
    key, arrays, info = sample(0)
    for number, text in enumerate((arrays["text"], arrays["text"], arrays["text"][:2])):
        shard = shards.start(number)
        shard.write(key, {"text": text}, info)
        shard.finish()
    first, same, shorter = (shards.finished(number) for number in range(3))
    with pytest.raises(ValueError, match="'000000' is written twice"):
        shards.seal([first, same])
    with pytest.raises(ValueError, match=r"000002\.tar has fields .*000000\.tar has"):
        shards.seal([first, shorter])
    with pytest.raises(ValueError, match="nothing was written"):
        shards.seal([])


@given(used=st.integers(0, 6), length=st.integers(1, 6), seed=st.integers(0, 99))
def test_padding_comes_back(used, length, seed):
    array = np.zeros((length, 3), np.float16)
    used = min(used, length)
    array[:used] = np.random.default_rng(seed).standard_normal((used, 3))
    stored = without_padding(array)
    assert len(stored) == max(used, 1)
    np.testing.assert_array_equal(with_padding(stored, length), array)


def test_padding_costs_nothing(tmp_path):
    def size(folder, used):
        text = np.zeros((512, 64), np.float16)
        text[:used] = 1
        with ShardWriter(folder, "prompts", about={}) as writer:
            writer.write("a", {"text": text}, {"caption": "a"})
        reader = open_shards(folder)
        np.testing.assert_array_equal(reader[0]["text"], text)
        np.testing.assert_array_equal(next(reader.read_all(["text"]))["text"], text)
        assert reader.manifest["fields"]["text"]["shape"] == [512, 64]
        return reader.bytes

    saved = size(tmp_path / "long", 512) - size(tmp_path / "short", 12)
    assert abs(saved - 500 * 64 * 2) < 10240  # tars are filled up to as much
