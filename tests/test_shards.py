"""Shard sets: the round trip, equal bytes for equal input, every kind of damage."""

import hashlib
import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.shards.reader import ShardReader, ShardWriter, open_shards, require

ABOUT = {"fps": 8, "seed": 3, "normalisation": {"mean": [0.0, 1.0], "std": 2.0}}


def sample(i):
    rng = np.random.default_rng(i)
    arrays = {
        "latents": rng.standard_normal((2, 3, 2, 2)).astype(np.float16),
        "text": rng.standard_normal((4, 5)).astype(np.float32),
        "video": rng.integers(0, 256, (2, 16, 16, 1)).astype(np.uint8),
    }
    return f"{i:06d}", arrays, {"caption": f"clip {i}", "number": i}


def write(folder, count=7, per_shard=3, first=0):
    negative = np.full((4, 5), 0.5, np.float32)
    with ShardWriter(
        folder, "clips", about=ABOUT, negative=negative, samples_per_shard=per_shard
    ) as shards:
        for i in range(first, first + count):
            shards.write(*sample(i))
    return folder


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def rewrite_manifest(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest))


def replace_member(folder, number, member, payload):
    """Put other bytes of the same length in place of a member."""
    reader = ShardReader(folder)
    file, _, members = reader._places[number]
    offset, size = members[member]
    assert len(payload) <= size
    data = bytearray((folder / file).read_bytes())
    data[offset : offset + size] = payload.ljust(size, b" ")
    (folder / file).write_bytes(data)


@settings(max_examples=12, deadline=None)
@given(count=st.integers(1, 9), per_shard=st.integers(1, 4))
def test_what_is_written_is_read(tmp_path_factory, count, per_shard):
    folder = write(tmp_path_factory.mktemp("set"), count, per_shard)
    shards = open_shards(folder)
    assert len(shards) == count == shards.manifest["count"]
    assert len(shards.manifest["shards"]) == -(-count // per_shard)
    assert shards.manifest["fps"] == 8 and shards.manifest["kind"] == "clips"
    np.testing.assert_array_equal(shards.negative, np.full((4, 5), 0.5))
    shards.verify()
    for i, streamed in enumerate(shards.read_all(shards.fields)):
        key, arrays, info = sample(i)
        for found in (shards[i], streamed):
            assert (found["key"], found["caption"], found["info"]) == (key, info["caption"], info)
            for name, array in arrays.items():
                assert found[name].dtype == array.dtype
                np.testing.assert_array_equal(found[name], array)


def test_only_the_fields_asked_for_are_read(tmp_path):
    assert set(open_shards(write(tmp_path)).read(2, ["text"])) == {"key", "caption", "info", "text"}


def test_plain_webdataset_reads_our_tars(tmp_path):
    write(tmp_path)
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [s["__key__"] for s in found] == [f"{i:06d}" for i in range(7)]
    for i, s in enumerate(found):
        assert s["json"]["caption"] == f"clip {i}"
        np.testing.assert_array_equal(s["latents.npy"], sample(i)[1]["latents"])


def test_equal_input_gives_equal_bytes(tmp_path):
    first = digests(write(tmp_path / "a"))
    assert first == digests(write(tmp_path / "b"))
    again = digests(write(tmp_path / "c", first=1))
    assert again["000000.tar"] != first["000000.tar"]
    assert open_shards(tmp_path / "a").fingerprint == open_shards(tmp_path / "b").fingerprint
    assert open_shards(tmp_path / "a").fingerprint != open_shards(tmp_path / "c").fingerprint


def test_the_shards_of_a_run_are_not_the_run(tmp_path):
    """A run is given, not its shards."""
    write(tmp_path / "run" / "shards")
    with pytest.raises(FileNotFoundError, match=r"shards is a shard set itself; give .*/run$"):
        open_shards(tmp_path / "run" / "shards" / "shards")


def test_a_stopped_writer_leaves_no_set_and_a_rerun_starts_clean(tmp_path):
    write(tmp_path, count=9)
    with (
        pytest.raises(KeyboardInterrupt),
        ShardWriter(tmp_path, "clips", about=ABOUT, samples_per_shard=1) as shards,
    ):
        shards.write(*sample(0))
        shards.write(*sample(1))
        assert not (tmp_path / "manifest.json").exists()  # what a SIGKILL here would leave
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError, match=r"manifest\.json is missing.*writes it again"):
        open_shards(tmp_path)
    assert digests(write(tmp_path, count=2)) == digests(write(tmp_path.parent / "fresh", count=2))


def test_a_folder_of_other_files_keeps_them(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    write(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_missing_truncated_and_altered_files_are_named(tmp_path):
    write(tmp_path)
    shard = tmp_path / "000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-700])
    with pytest.raises(ValueError, match=r"000001\.tar has \d+ bytes, manifest\.json says \d+"):
        open_shards(tmp_path)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"000001\.tar of manifest\.json is missing: fetch"):
        open_shards(tmp_path)
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    shard.write_bytes(flipped)
    shards = open_shards(tmp_path)  # same size: only the hash tells
    with pytest.raises(ValueError, match=r"000001\.tar has changed since it was written"):
        shards.verify()
    with pytest.raises(ValueError, match=r"000001\.tar has changed since it was written"):
        list(shards.read_all(["text"]))


def test_a_damaged_manifest_or_index_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"index\.json does not belong to manifest\.json"):
        open_shards(tmp_path)
    write(tmp_path)
    rewrite_manifest(tmp_path, lambda manifest: manifest.update(version=99))
    with pytest.raises(ValueError, match=r"version 99, this code reads 1"):
        open_shards(tmp_path)
    write(tmp_path)
    rewrite_manifest(tmp_path, lambda manifest: manifest.pop("shards"))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged: it has no shards; write"):
        open_shards(tmp_path)
    (tmp_path / "manifest.json").write_text('{"version": 1,')
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        open_shards(tmp_path)


def npy(array, allow_pickle=False):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("member", "payload", "message"),
    [
        ("latents.npy", b"\x93NUMPY garbage", "field latents is corrupt"),
        ("latents.npy", b"", "field latents is corrupt"),
        ("text.npy", npy(np.zeros((4, 4), np.float32)), r"text is float32 \[4, 4\].*says"),
        ("text.npy", npy(np.zeros((4, 5), np.float16)), r"text is float16 \[4, 5\].*says"),
        ("json", b"{", "json is corrupt"),
        ("json", b'{"number": 1}', "json is corrupt .*no caption"),
        ("json", b"\xff\xfe", "json is corrupt"),
    ],
)
def test_a_corrupt_sample_is_named_with_its_shard(tmp_path, member, payload, message):
    write(tmp_path)
    replace_member(tmp_path, 4, member, payload)
    shards = open_shards(tmp_path)
    shards[3]
    for read in (lambda: shards[4], lambda: list(shards.read_all(shards.fields))):
        with pytest.raises(ValueError, match=rf"'000004' in .*000001\.tar.*{message}"):
            read()


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("something was unpickled",))


def test_nothing_is_unpickled(tmp_path):
    bomb = npy(np.array([Bomb()], dtype=object), allow_pickle=True)
    assert b"something was unpickled" in bomb
    write(tmp_path)
    replace_member(tmp_path, 0, "video.npy", bomb)
    shards = open_shards(tmp_path)
    with pytest.raises(ValueError, match="'000000'.*corrupt"):
        shards[0]
    (tmp_path / "negative.npy").write_bytes(bomb)
    with pytest.raises(ValueError, match=r"negative\.npy is corrupt"):
        _ = shards.negative
    key, arrays, info = sample(0)
    with (
        pytest.raises(ValueError, match="plain numbers"),
        ShardWriter(tmp_path / "new", "clips", about={}) as writer,
    ):
        writer.write(key, {**arrays, "extra": np.array([None])}, info)


@pytest.mark.parametrize("url", ["s3://bucket/x", "https://a.org/x", "pipe:cat x", "hf://d/x"])
def test_remote_sets_are_refused_with_the_cure(url):
    for use in (open_shards, lambda folder: ShardWriter(folder, "clips", about={})):
        with pytest.raises(ValueError, match="remote: copy it first"):
            use(url)


def test_the_writer_refuses_what_no_reader_could_use(tmp_path):
    key, arrays, info = sample(0)
    with pytest.raises(ValueError, match="no shard kind 'movies'; there are clips"):
        ShardWriter(tmp_path, "movies", about={})
    with pytest.raises(ValueError, match="made by the writer"):
        ShardWriter(tmp_path, "clips", about={"count": 3})
    with (
        pytest.raises(ValueError, match="nothing was written"),
        ShardWriter(tmp_path, "clips", about={}),
    ):
        pass
    with ShardWriter(tmp_path, "clips", about={}) as shards:
        for bad in ("a.b", "", "a/b", "x" * 92):
            with pytest.raises(ValueError, match="sample key"):
                shards.write(bad, arrays, info)
        with pytest.raises(ValueError, match="'caption'"):
            shards.write(key, arrays, {})
        with pytest.raises(ValueError, match=r"kind clips need \['text'\]"):
            shards.write(key, {"latents": arrays["latents"]}, info)
        shards.write(key, arrays, info)
        with pytest.raises(ValueError, match="twice"):
            shards.write(key, arrays, info)
        with pytest.raises(ValueError, match="first sample of the set has"):
            shards.write("other", {**arrays, "text": arrays["text"][:2]}, info)
    assert len(open_shards(tmp_path)) == 1


def test_require_names_both_values_and_the_manifest(tmp_path):
    shards = open_shards(write(tmp_path))
    require(shards, kind="clips", latents=(None, 3, 2, 2), text=(4, 5), fps={8, 16})
    with pytest.raises(
        ValueError, match=r"manifest\.json says latents \[2, 3, 2, 2\], .* \['any', 16, 2, 2\]: use"
    ):
        require(shards, latents=(None, 16, 2, 2))
    with pytest.raises(ValueError, match="kind is 'clips', the recipe wants 'pairs'"):
        require(shards, kind="pairs")
    with pytest.raises(ValueError, match=r"has no 'trajectory' \(it has latents, text, video"):
        require(shards, trajectory=(5, 2, 3, 2, 2))


def test_a_reader_travels_to_another_process(tmp_path):
    shards = pickle.loads(pickle.dumps(open_shards(write(tmp_path))))
    assert shards[6]["key"] == "000006"


def test_headers_carry_no_time_and_no_user(tmp_path):
    write(tmp_path)
    with tarfile.open(tmp_path / "000000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}
