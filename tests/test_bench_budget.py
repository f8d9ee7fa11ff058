"""A bench within a budget: rows in order of value, one that hangs killed, the JSON whole always."""

import json
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from experiments.bench import command
from experiments.bench.isolated import Answer, ask
from experiments.bench.report import Report

ABOUT = {
    "scale": "tiny", "settings": {}, "protocol": {"warmup": 1}, "versions": {"torch": "2"},
    "revision": "abc", "device": {"name": "a card"}, "peak": {"matmul_flops": 1.0},
    "clip_shape": [1, 1, 1, 1],
}  # fmt: skip
ROW = {"name": "a", "median_s": 1.0, "share_of_roofline": 0.5, "mfu": 0.5, "peak_memory_bytes": 1}


def program(text: str) -> list[str]:
    """A process that stands for a worker."""
    return [sys.executable, "-c", "import json, sys\norder = json.load(sys.stdin)\n" + text]


def rows_of(file) -> dict:
    return {row["name"]: row for row in json.loads(file.read_text())["rows"]}


def test_a_process_gets_an_order_and_answers_with_rows(tmp_path):
    text = "print(json.dumps({'row': order}))\nprint('noise', file=sys.stderr)"
    assert ask({"task": "a"}, 60, tmp_path / "log", program(text)) == Answer([{"task": "a"}])
    assert (tmp_path / "log").read_text() == "noise\n"


def test_a_hanging_row_is_killed_with_its_children_and_keeps_what_it_measured(tmp_path):
    """Also a child in a session of its own, as compilers start them."""
    text = """
import subprocess, time
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
apart = [subprocess.Popen(sleep, start_new_session=own).pid for own in (True, False)]
print(json.dumps({"row": {"children": apart}}), flush=True)
print('{"row": {"half', end="", flush=True)
time.sleep(600)
"""
    begun = time.monotonic()
    answer = ask({}, 5, tmp_path / "log", program(text))
    assert time.monotonic() - begun < 60
    assert "killed after 5 s" in answer.error and len(answer.rows) == 1
    gone = [psutil.Process(pid) for pid in answer.rows[0]["children"] if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(gone, timeout=20)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import os; os.abort()", "ended with status -6"),
        ("print(json.dumps({'error': 'OutOfMemoryError: x'}))", "OutOfMemoryError: x"),
    ],
)
def test_a_row_that_fails_says_why(tmp_path, text, error):
    said = "print(json.dumps({'row': 1}), flush=True)\n"
    answer = ask({}, 60, tmp_path / "log", program(said + text))
    assert error in answer.error and answer.rows == [1]


def test_a_process_that_does_not_listen(tmp_path):
    big = {"task": "x" * 2**20}
    answer = ask(big, 60, tmp_path / "log", [sys.executable, "-c", "raise SystemExit(3)"])
    assert "ended with status 3" in answer.error


class Clock:
    """Stands for the module `time`; every row takes the seconds that it says."""

    def __init__(self, **takes: float) -> None:
        self.now, self.takes, self.shares = 0.0, takes, {}

    def monotonic(self) -> float:
        return self.now

    def ask(self, order, seconds: float) -> Answer:
        name = order["task"]
        self.shares[name] = seconds
        took = min(self.takes[name], seconds)
        self.now += took
        return Answer([{**ROW, "name": name}] if took < seconds else [], "" if took < seconds
                      else "killed")  # fmt: skip


def measured(tmp_path, monkeypatch, clock, minutes: float, most=None, again=False):
    monkeypatch.setattr(command, "time", clock)
    file, names = tmp_path / "a card.json", list(clock.takes)
    tasks = [SimpleNamespace(name=name) for name in names]
    report = Report(file, ABOUT, names, again)
    command._measure(tasks, report, clock.ask, clock.now + 60 * minutes, most)
    return rows_of(file)


def test_a_budget_is_kept_and_what_is_not_reached_says_so(tmp_path, monkeypatch):
    clock = Clock(first=50.0, hangs=1e9, third=50.0, last=1.0)
    found = measured(tmp_path, monkeypatch, clock, minutes=5)
    assert clock.shares == {"first": 75.0, "hangs": 62.5, "third": 60.0, "last": 60.0}
    assert found["hangs"]["error"] == "killed" and found["third"]["median_s"] == 1.0


def test_a_row_gets_no_more_than_is_left(tmp_path, monkeypatch):
    clock = Clock(a=55.0, b=1e9, c=1.0)
    found = measured(tmp_path, monkeypatch, clock, minutes=1.5)
    assert clock.shares == {"a": 60.0, "b": 35.0} and clock.now == 90
    assert found["c"]["not_run"] == "no time was left (--minutes): 0 s"


def test_without_minutes_a_row_has_an_hour(tmp_path, monkeypatch):
    clock = Clock(a=1e9, b=1.0)
    found = measured(tmp_path, monkeypatch, clock, minutes=float("inf"))
    assert clock.shares == {"a": 3600, "b": 3600} and found["b"]["median_s"] == 1.0


def test_the_next_call_measures_what_is_missing(tmp_path, monkeypatch):
    measured(tmp_path, monkeypatch, Clock(a=1.0, b=1e9, c=1.0), 5, most=100)
    clock = Clock(a=1.0, b=1.0, c=1.0)
    found = measured(tmp_path, monkeypatch, clock, 5)
    assert set(clock.shares) == {"b"} and list(found) == ["a", "b", "c"]
    assert not any("error" in row for row in found.values())
    clock = Clock(a=1.0, b=1.0, c=1.0)
    measured(tmp_path, monkeypatch, clock, 5, again=True)
    assert set(clock.shares) == {"a", "b", "c"}


def test_the_file_is_whole_after_every_row(tmp_path):
    report = Report(tmp_path / "r.json", ABOUT, ["a", "b"])
    assert {name: "not_run" in row for name, row in rows_of(report.file).items()} == {
        "a": True, "b": True,
    }  # fmt: skip
    report.add("a", [ROW])
    assert rows_of(report.file)["a"]["median_s"] == 1.0 and report.has("a")
    report.add("b", [{**ROW, "name": "b/student"}], "killed")
    assert set(rows_of(report.file)) == {"a", "b/student", "b"} and not report.has("b")
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"device": {"name": "another"}}, "another device.name (a card; now another)"),
        ({"revision": "def"}, "another revision"),
        ({"settings": {"shift": 1}}, "another settings"),
        ({"protocol": {"warmup": 2}}, "another protocol"),
    ],
)
def test_rows_of_something_else_are_not_continued(tmp_path, changed, message):
    Report(tmp_path / "r.json", ABOUT, ["a"]).add("a", [ROW])
    with pytest.raises(ValueError) as error:
        Report(tmp_path / "r.json", ABOUT | changed, ["a"])
    assert message in str(error.value) and "--again" in str(error.value)
    Report(tmp_path / "r.json", ABOUT | changed, ["a"], again=True)


@pytest.mark.parametrize("text", ["", "[]", '{"rows": [{}]}'])
def test_another_file_is_not_overwritten(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match="no file that this bench wrote"):
        Report(tmp_path / "r.json", ABOUT, ["a"])
    assert (tmp_path / "r.json").read_text() == text


def test_the_peak_stays_that_of_the_rows(tmp_path):
    Report(tmp_path / "r.json", ABOUT, ["a"]).add("a", [ROW])
    again = Report(tmp_path / "r.json", ABOUT | {"peak": {"matmul_flops": 2.0}}, ["a"])
    assert again.about["peak"] == ABOUT["peak"]
