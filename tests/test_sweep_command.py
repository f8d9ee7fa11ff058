"""What the words of a sweep's command line may be."""

import pytest

from sweeps.__main__ import main
from sweeps.executors import executor


@pytest.mark.parametrize("count", ["0", "-1", "two", "", "1.5"])
def test_a_number_of_workers_that_would_never_run_anything_is_refused(tmp_path, capsys, count):
    with pytest.raises(SystemExit) as stop:
        main(["run", "smoke", "--runs", str(tmp_path), f"--workers={count}"])
    assert stop.value.code == 2 and "is no number such as 1, 2, 8" in capsys.readouterr().err


def test_gpus_that_are_not_there_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ValueError, match="no GPU 0 to use .there are: none; leave --gpus out"):
        executor("local", gpus=["0"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with pytest.raises(ValueError, match="no GPU 1 to use .there are: 2, 3"):
        executor("local", gpus=["3", "1"])
    pool = executor("local", gpus=["3"])
    assert pool.size == 1
    pool.close()


def test_a_home_folder_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("cells: [{runs: {x: {recipe: base}}}]")
    assert main(["plan", "~/mine.yaml", "--runs", "~/runs"]) == 0
    assert "1 cells" in capsys.readouterr().out
