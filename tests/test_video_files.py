"""Video files: where they are found, and what is refused one by one or as a whole."""

import errno
import os
import unicodedata
import zipfile
from pathlib import Path

import pytest

from datamodules.curation.refusal import Refused
from datamodules.curation.video_files import VideoFile, find_table, find_videos, plain_name


def test_links_are_followed_each_folder_once(tmp_path):
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    source.mkdir()
    (elsewhere / "deep" / "a.mp4").write_bytes(b"a")
    (source / "b.MP4").write_bytes(b"b")
    (source / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(source)  # a loop
    (elsewhere / "deep" / "self").symlink_to(elsewhere)
    found = find_videos(source)
    assert {name: file.read() for name, file in found.items()} == {"a.mp4": b"a", "b.mp4": b"b"}


def test_names_of_a_mac_are_the_tables_names(tmp_path):
    composed = unicodedata.normalize("NFC", "café_1.mp4")
    (tmp_path / unicodedata.normalize("NFD", composed)).write_bytes(b"a")
    with zipfile.ZipFile(tmp_path / "part.ZIP", "w") as part:
        part.writestr(unicodedata.normalize("NFD", "some/where/été_2.MOV"), b"b")
    found = find_videos(tmp_path)
    assert found[plain_name(composed)].read() == b"a"
    assert found["été_2.mov"].read() == b"b"


def test_one_file_that_cannot_be_read_is_one_refusal(tmp_path):
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "gone")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    (tmp_path / "good.mp4").write_bytes(b"good")
    found = find_videos(tmp_path)
    assert len(found) == 4 and found["good.mp4"].read() == b"good"
    for name, why in (("dangling", "No such file"), ("folder", "Is a dir"), ("loop", "Too many")):
        with pytest.raises(Refused) as caught:
            found[f"{name}.mp4"].read()
        assert caught.value.reason == "unreadable" and why in caught.value.detail


def test_a_disk_that_is_broken_or_gone_is_not_the_videos_fault(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        VideoFile(str(tmp_path / "gone" / "a.mp4")).read()

    def broken(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(OSError, match="Input/output error"):
        VideoFile(str(tmp_path / "a.mp4")).read()


@pytest.mark.parametrize(
    ("pieces", "command"),
    [
        (["OpenVid_part73_partaa"], r"cat OpenVid_part73_part\* > OpenVid_part73.zip"),
        (
            ["OpenVidHD_part_15_part_aa", "OpenVidHD_part_15_part_ab"],
            r"cat OpenVidHD_part_15_part_\* > OpenVidHD_part_15.zip",
        ),
        (["OpenVid_part0.zip.001"], r"cat OpenVid_part0.zip.\* > OpenVid_part0.zip"),
    ],
)
def test_pieces_are_named_with_the_command_that_joins_them(tmp_path, pieces, command):
    folder = tmp_path / "Open Vid"
    folder.mkdir()
    for name in pieces:
        (folder / name).write_bytes(b"half")
    with pytest.raises(ValueError, match=f"{pieces[0]}: a piece of .*cd '.*Open Vid'; {command}"):
        find_videos(folder)
    whole = command.split(" > ")[1]
    with zipfile.ZipFile(folder / whole, "w") as joined:
        joined.writestr("a.mp4", b"a")
    assert set(find_videos(folder)) == {"a.mp4"}


def test_a_zip_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "OpenVid_part0.zip").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="part0.zip: cannot be read .No such file.*take it away"):
        find_videos(tmp_path)


def test_the_table_may_lie_deeper(tmp_path):
    (tmp_path / "data" / "train").mkdir(parents=True)
    deep = tmp_path / "data" / "train" / "OpenVid-1M.csv"
    deep.write_text("")
    assert find_table(tmp_path, "OpenVid-1M.csv") == deep
    with pytest.raises(FileNotFoundError, match="no such table; .* has data/train/OpenVid-1M.csv"):
        find_table(tmp_path, "OpenVidHD.csv")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "OpenVid-1M.csv").write_text("")
    with pytest.raises(ValueError, match="copy/OpenVid-1M.csv and .*train/OpenVid-1M.csv: which"):
        find_table(tmp_path, "OpenVid-1M.csv")
    (tmp_path / "OpenVid-1M.csv").write_text("")
    assert find_table(tmp_path, "OpenVid-1M.csv").parent == tmp_path


def test_of_equal_names_the_first_is_taken_and_said(tmp_path, caplog):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.mp4").write_bytes(name.encode())
    assert find_videos(tmp_path)["x.mp4"].read() == b"a"
    assert "a/x.mp4 is taken, not" in caplog.text and "b/x.mp4 of the same name" in caplog.text
