"""YAML is read as version 1.2 says, and text stays text, wherever it is written."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from experiments.runs.recipe import Library, parse_settings
from experiments.runs.yaml_reader import dump_yaml, parse_yaml, read_table, read_yaml
from sweeps.plan.graph import FOLDER

TEXTS = (
    "010", "0o10", "0x10", "0b1", "1_000", "12:00:00", "1:30", "2026-11-21", "00", "0123", "08.5",
    "yes", "no", "on", "off", "Yes", "OFF", "y", "n", "1.2.3", ".", "=", "1e",
)  # fmt: skip
VALUES = {
    "8": 8, "0": 0, "-3": -3, "+5": 5, "1.10": 1.1, "1.": 1.0, ".5": 0.5, "-.5": -0.5, "1e5": 1e5,
    "1e-4": 1e-4, "2.0E+3": 2000.0, "0.0": 0.0, ".inf": math.inf, "-.INF": -math.inf, "true": True,
    "False": False, "null": None, "~": None, "": None, "'8'": "8", '"no"': "no", "!!str 8": "8",
    "[1, no]": [1, "no"], "{a: on}": {"a": "on"}, "${x}": "${x}",
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_what_only_yaml_1_1_takes_for_a_number_is_text(text):
    assert parse_yaml(text, "x") == text
    assert parse_settings([f"key={text}"]) == {"key": text}


@pytest.mark.parametrize("text", VALUES)
def test_values(text):
    found = parse_yaml(text, "x")
    assert found == VALUES[text] and type(found) is type(VALUES[text])


@pytest.mark.parametrize("text", ["1.10", "010", "1e5", "2026", "true", "12:00"])
def test_names_are_text(text, tmp_path):
    assert parse_yaml(f"{{folder: {text}}}", "x") == {"folder": text}
    assert parse_settings([f"clips={{folder: {text}}}"]) == {"clips": {"folder": text}}
    assert parse_settings([f"needs.data.folder={text}"]) == {"needs.data.folder": text}
    (tmp_path / "a.yaml").write_text(f"needs:\n  data: {{recipe: {text}}}\n")
    assert read_yaml(tmp_path / "a.yaml") == {"needs": {"data": {"recipe": text}}}
    assert parse_yaml("{folder: null}", "x") == {"folder": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  a: 1\n  a: 2\n", "line 4: .*the key 'a' is repeated, see line 3"),
        ("a: 1\n\tb: 2\n", "line 2: .*indent with spaces"),
        ("a: 1\nb: [1\n", "line 3: .*expected ',' or '\\]'"),
        ("a: *no\n", "line 1: .*undefined alias 'no'"),
        ("a: 1\n---\nb: 1\n", "line 2: .*another document"),
        ("a: !!int 010\n", "line 1: .*write the value alone"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1: .*constructor"),
        ("a: 1\n1: 2\n", "line 2: .*the key '1' is no text; quote it"),
        ("[a, b]: 2\n", "line 1: .*is no text"),
        ("a: &a {b: *a}\n", "an anchor contains itself"),
        ("[" * 1000, "nested too deeply"),
    ],
)
def test_what_is_no_yaml_is_refused_with_file_and_line(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"(?s)bad.yaml.*{message}"):
        read_yaml(file)


def test_encodings(tmp_path):
    file = tmp_path / "a.yaml"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file.write_bytes("a: é\n".encode(encoding))
        assert read_yaml(file) == {"a": "é"}
    file.write_bytes("a: é\n".encode("latin-1"))
    with pytest.raises(ValueError, match="a.yaml: not readable as YAML: .*save it in UTF-8"):
        read_yaml(file)


def test_anchors_and_merge_keys():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n"
    assert parse_yaml(text, "x")["b"] == {"x": 1, "y": 3}
    assert parse_yaml(text, "x")["c"] == {"x": 1, "y": 2}


def test_keys_of_tables_may_be_values_of_labels(tmp_path):
    (tmp_path / "a.yaml").write_text("{2: a, true: b, 0.5: c, no: d}")
    assert read_table(tmp_path / "a.yaml") == {2: "a", True: "b", 0.5: "c", "no": "d"}


TREES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False),
        st.text("0123456789._eExobynfalsu+-:~ '\"#{}$[],&*!|>%@\n\t"), st.sampled_from(TEXTS),
    ),
    lambda below: st.lists(below) | st.dictionaries(st.sampled_from(["a", "no", "1"]), below),
)  # fmt: skip


@given(TREES)
def test_what_is_written_is_read_again(tree):
    again = parse_yaml(dump_yaml({"tree": tree}), "x")["tree"]
    assert again == tree and repr(again) == repr(tree)


FILES = [
    *Library().recipes.rglob("*.yaml"),
    *Library().scales.glob("*.yaml"),
    *FOLDER.rglob("*.yaml"),
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_files_of_ours_mean_the_same_to_other_readers(file):
    assert read_table(file) == OmegaConf.to_container(OmegaConf.load(file), resolve=False)
