"""VBench's prompt lists: what `score` would refuse is refused first; names of the videos."""

import numpy as np
import pytest

from datamodules.shards.reader import ShardWriter, open_shards
from experiments.__main__ import main
from experiments.worlds.wan import vbench, vbench_prompts


def test_names_for_vbench_are_whole_and_never_overwrite(tmp_path):
    """Prompts that share their first hundred characters, and one that stands there twice."""
    long = "a very long prompt " * 8
    prompts = [long + "one", long + "two", "twice", "twice"]
    with ShardWriter(tmp_path / "shards", "prompts", about={}) as writer:
        for number, prompt in enumerate(prompts, 1):
            info = {"caption": f"{prompt}, extended", "name": f"line-{number}"}
            writer.write(f"k{number}", {"text": np.zeros((1, 1), np.float32)}, info)
    shards = open_shards(tmp_path / "shards")
    names = [entry.name for entry in vbench._entries(shards, tmp_path, prompts)]
    assert names == [f"{long}one-0.mp4", f"{long}two-0.mp4", "twice-0.mp4", "twice-1.mp4"]
    with pytest.raises(ValueError, match="has no line in all_dimension.txt"):
        list(vbench._entries(shards, tmp_path, prompts[:2]))
    with pytest.raises(FileNotFoundError, match="put VBench's prompts"):
        vbench_prompts.read_prompts(tmp_path)


@pytest.mark.parametrize("prompt", ["a 50/50 split", "/", "walks " * 60, "漢" * 90])
def test_a_prompt_need_not_be_a_file_name(tmp_path, prompt):
    names = [vbench_prompts.video_name(prompt, key, i) for key in ("k1", "k2") for i in (0, 1)]
    assert len(set(names)) == 4
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def lists(folder, prompts, extended):
    folder.mkdir(exist_ok=True)
    (folder / "all_dimension.txt").write_text(prompts, encoding="utf-8")
    (folder / "all_dimension_extended.txt").write_text(extended, encoding="utf-8")
    return folder / "all_dimension_extended.txt"


@pytest.mark.parametrize(
    ("prompts", "extended", "message"),
    [
        ("one\ntwo\n", "one\ntwo\nthree\n", "line 3 of all_dimension_extended.txt is 'three'"),
        ("one\ntwo\nthree\n", "one\ntwo\n", "line 3 of all_dimension.txt is 'three', .*_extended"),
        ("one\n\nthree\n", "one\ntwo\nthree\n", "line 2 of all_dimension_extended.txt is 'two'"),
    ],
)
def test_lists_that_do_not_fit_are_refused_before_sampling(tmp_path, prompts, extended, message):
    with pytest.raises(ValueError, match=f"{message}.*line by line"):
        vbench_prompts.check_list(lists(tmp_path, prompts, extended))


def test_only_vbenchs_lists_are_compared(tmp_path):
    vbench_prompts.check_list(
        lists(tmp_path, "a\u2028b\nc", "\ufeffa\u2028b, far\r\nc, far\r\n\r\n")
    )
    assert vbench_prompts.read_prompts(tmp_path) == ["a\u2028b", "c"]
    vbench_prompts.check_list(tmp_path / "gone" / "other.txt")
    (tmp_path / "all_dimension.txt").unlink()
    with pytest.raises(FileNotFoundError, match="put VBench's prompts"):
        vbench_prompts.check_list(tmp_path / "all_dimension_extended.txt")


def test_a_list_of_prompts_becomes_a_benchmark(tmp_path, capsys):
    """The published one has no line number or extended wording: both lists are the same."""
    file, folder = tmp_path / "text_align.txt", tmp_path / "new" / "actions"
    file.write_bytes("\ufeffa dog runs\r\n\r\n  a 50/50 split \r\n漢\r\n".encode())
    for _ in range(2):
        assert main(["prompts", str(file), "--to", str(folder)]) == 0
        assert vbench_prompts.read_prompts(folder) == ["a dog runs", "a 50/50 split", "漢"]
        vbench_prompts.check_list(folder / vbench_prompts.EXTENDED)
    file.write_text("a cat runs\n")
    assert main(["prompts", str(file), "--to", str(folder)]) == 1
    assert "all_dimension.txt has other prompts" in capsys.readouterr().err
    file.write_text(" \n\n")
    assert main(["prompts", str(file), "--to", str(tmp_path / "none")]) == 1
    assert f"{file}: there is no prompt" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
