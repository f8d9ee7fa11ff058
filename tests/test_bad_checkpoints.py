"""Checkpoints that do not fit, are damaged or of other data: named with the cure, and kept."""

import shutil
from pathlib import Path

import torch
from minimal_runs import copied, finished, rewritten
from test_bad_input import STAGE1, _signals, refuse  # noqa: F401


def interrupted(folder: Path) -> tuple[Path, Path]:
    """Runs whose Stage 1 has a checkpoint at its last step but is not done."""
    runs = copied(folder, "stage2", "stage3")
    stage1 = finished(runs, STAGE1)
    (stage1 / "done.json").unlink()
    shutil.rmtree(stage1 / "student")
    return runs, stage1 / "checkpoints" / "last.ckpt"


def test_checkpoint_of_another_shape(refuse, tmp_path):  # noqa: F811
    runs, last = interrupted(tmp_path)
    saved = torch.load(last, weights_only=True)
    name = "student.proj_out.weight"
    saved["state_dict"][name] = saved["state_dict"][name][:, :12]
    torch.save(saved, last)
    before = last.read_bytes()
    said = refuse(runs, "fit", STAGE1)
    assert str(last) in said and name in said and "delete it" in said
    assert last.read_bytes() == before


def test_damaged_checkpoint(refuse, tmp_path):  # noqa: F811
    runs, last = interrupted(tmp_path)
    whole = last.read_bytes()
    for kept in (len(whole) - 1000, len(whole) // 2, 20, 0):
        last.write_bytes(whole[:kept])
        said = refuse(runs, "fit", STAGE1)
        assert str(last) in said and "delete it" in said, (kept, said)


def test_checkpoint_of_other_data(refuse, tmp_path):  # noqa: F811
    runs, last = interrupted(tmp_path)
    clips = finished(runs, "clips")
    rewritten(clips, tmp_path / "clips", lambda sample: sample["info"].update(note="other"))
    shutil.rmtree(clips / "shards")
    shutil.move(tmp_path / "clips" / "shards", clips)
    said = refuse(runs, "fit", STAGE1)
    assert f"{clips}/shards: it has been replaced since clips" in said
    assert "Put back what was there" in said
    (clips / "done.json").write_text("{}")  # of older code
    said = refuse(runs, "fit", STAGE1)
    assert f"{clips}: replaced since stage1" in said and "Put back what was there" in said
