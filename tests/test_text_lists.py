"""The reader of prompt lists and tables: encodings, lines, quotes, words, and what is refused."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.curation.text_lists import (
    LONGEST_FIELD,
    read_lines,
    read_records,
    read_text,
    words_in,
)

LINES = ["a cat walks\u2028on the grass", "", "next\u0085line and form\x0cfeed", "雪が降る"]


def records(path, *columns):
    return list(read_records(path, columns, "use another table"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_accepted_encoding_and_line_end_gives_the_same_lines(tmp_path, encoding, end):
    path = tmp_path / "list.txt"
    path.write_bytes(end.join(LINES).encode(encoding))
    assert list(read_lines(path)) == list(enumerate(LINES, 1))
    assert read_text(path) == end.join(LINES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("one\r\ntwo\nläuft\n".encode("latin-1"), r"line 3: neither UTF-8 .*iconv -f .* -t UTF-8"),
        ("one\n在草地上\n".encode("gbk"), "line 2: neither UTF-8 nor UTF-16"),
        ("one\n".encode("utf-16")[:-1], "neither UTF-8 nor UTF-16"),
        ("one\ntwo\n".encode("utf-16-le"), "line 1: a NUL character.*UTF-16 without"),
        ("one\n".encode("utf-32"), "line 1: UTF-32; save it as UTF-8"),
        (b"\x1f\x8b\x08\x00\x00", "line 1: neither UTF-8"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "line 1: a Git LFS pointer.*git lfs pull",
        ),
        (b"<!DOCTYPE html>\n", "line 1: a web page.*download the raw file"),
    ],
)
def test_what_is_no_text_list_is_named_with_its_line(tmp_path, content, message):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"list.txt: .*{message}"):
        list(read_lines(path))


def test_records_know_the_line_that_they_begin_in(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(
        b'\xef\xbb\xbfname, text\r\na,"one\r\ntwo, ""three"""\r\n\r\nb\r\nc,d,e\r\nf,g\r\n'
    )
    first, short, long, last = records(path, "name", "text")
    assert first == (2, {"name": "a", "text": 'one\r\ntwo, "three"'}, "")
    assert short == (5, {}, "line 5 has 1 fields, the header 2")
    assert long.problem == "line 6 has 3 fields, the header 2"
    assert last == (7, {"name": "f", "text": "g"}, "")
    with pytest.raises(ValueError, match="no column 'uuid'; it has 'name', 'text'; use another"):
        records(path, "uuid")


@pytest.mark.parametrize(
    "rest",
    [
        'b,"open\n' + "c,d\n" * 5,
        'b,"open\nc,"quoted"\n',
        'b,"' + "c,d\n" * (LONGEST_FIELD // 4 + 1),
    ],
)
def test_a_quote_that_is_not_closed_is_found_where_it_opens(tmp_path, rest):
    path = tmp_path / "table.csv"
    path.write_text("name,text\na,a\n" + rest)
    with pytest.raises(ValueError, match="table.csv: the record that begins in line 3 has a quote"):
        records(path, "name")


def test_long_fields_are_read(tmp_path):
    """The csv module refuses more than 131,072 characters by itself."""
    path = tmp_path / "table.csv"
    path.write_text(f"name,text\na,{'word ' * 40_000}\n")
    assert len(records(path, "text")[0].values["text"]) == 200_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a cat's, walk – in 4K", 6),
        ("  ", 0),
        ("一只猫在草地上行走，镜头缓慢推进。", 15),
        ("ネコが歩く", 5),
        ("a 猫 walks", 3),
        ("แมวเดินบนหญ้า", 3),
        ("고양이가 잔디 위를 걷는다", 4),
    ],
)
def test_words_are_counted_as_the_script_has_them(text, words):
    assert words_in(text) == words


@given(st.text("aé ,.'\t\n\u2028-Ж", max_size=40))
def test_words_between_spaces_are_counted_as_ever(text):
    assert words_in(text) == len(text.split())


ROOT = Path(__file__).parent.parent
READERS = [*ROOT.glob("datamodules/curation/*.py"), *ROOT.glob("experiments/worlds/**/*.py")]


@pytest.mark.parametrize("file", [str(path.relative_to(ROOT)) for path in READERS])
def test_nobody_else_splits_lines_or_reads_tables(file):
    if file == "datamodules/curation/text_lists.py":
        return
    tree = ast.parse((ROOT / file).read_text())
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not [name for name in used if name.endswith((".splitlines", ".readlines"))]
    assert not used & {"csv.reader", "csv.DictReader"}
