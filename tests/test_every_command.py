"""Every command: a bad input is one line that names it; pipes and interrupts are no errors."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.signals import STOP
from experiments import __main__ as verbs
from experiments.runs.errors import answered
from experiments.runs.recipe import recipes
from experiments.verbs.tools import TOOLS, Tool
from sweeps import __main__ as sweeping

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _signals():
    before = {number: signal.getsignal(number) for number in STOP}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# -- every command ---------------------------------------------------------------------------------


def directory(path: Path) -> None:
    path.mkdir()


def truncated(path: Path) -> None:
    path.write_text("recipe: base\nverb: fit\nneeds: {student: {rec")


BAD = {
    "missing": lambda path: None,
    "directory": directory,
    "empty": Path.touch,
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "truncated": truncated,
    "schema": lambda path: path.write_text("- a list\n- of things\n"),
    "loop": lambda path: path.symlink_to(path.name),
    "in a file": lambda path: path.parent.rmdir() or path.parent.touch(),
    "too long": lambda path: None,
}


@pytest.fixture(params=BAD)
def bad(request, tmp_path) -> Path:
    """Something that is no good as an input; its name ends as a recipe's."""
    (tmp_path / "inputs").mkdir()
    name = "x" * 300 if request.param == "too long" else "thing"
    path = tmp_path / "inputs" / f"{name}.yaml"
    BAD[request.param](path)
    return path


def asked(declare) -> list[argparse.Action]:
    """The arguments that a command cannot do without, and that take a path."""
    parser = argparse.ArgumentParser()
    declare(parser)
    needed = (each for each in parser._actions if each.required and each.choices is None)
    return [each for each in needed if each.type in (None, Path)]


def refused(capsys, main, words: list[str], *named: object) -> None:
    """The call is an error of one line that names one of these."""
    capsys.readouterr()
    try:
        status = main(words)
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err
    assert status in (1, 2), said
    assert "Traceback" not in said and "bug" not in said, said
    assert any(str(name) in said for name in named), said


@pytest.mark.parametrize("verb", verbs.WHAT)
def test_every_verb_refuses_a_bad_recipe(capsys, tmp_path, bad, verb):
    refused(capsys, verbs.main, [verb, str(bad), "--runs", str(tmp_path / "runs")], bad)


@pytest.mark.parametrize("tool", [name for name in TOOLS if asked(TOOLS[name].declare)])
def test_every_tool_refuses_a_bad_input(capsys, tmp_path, bad, tool):
    first, *others = asked(TOOLS[tool].declare)
    words = [tool, str(bad)]
    for each in others:
        words += [*each.option_strings[:1], str(tmp_path / "out")]
    refused(capsys, verbs.main, words, bad)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", [*sweeping.WHAT])
def test_every_verb_of_a_sweep_refuses_a_bad_one(capsys, tmp_path, bad, verb):
    refused(capsys, sweeping.main, [verb, str(bad), "--runs", str(tmp_path / "runs")], bad)


@pytest.mark.parametrize("under", ["file", "file/runs", "loop/runs"])
@pytest.mark.parametrize(
    ("main", "verb"),
    [*((verbs.main, each) for each in verbs.WHAT), *((sweeping.main, v) for v in sweeping.WHAT)],
)
def test_runs_cannot_lie_in_a_file(capsys, tmp_path, main, verb, under):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    what = "smoke" if main is sweeping.main else recipes(verb=verb)[0]
    words = [verb, what, "--runs", str(tmp_path / under)]
    refused(capsys, main, words, tmp_path / under.split("/")[0])


# -- pipes and interrupts --------------------------------------------------------------------------


PRINTING = [
    ["experiments", "--help"],
    *(["experiments", verb, "--help"] for verb in ("fit", "bench")),
    ["sweeps", "--help"],
    *(["sweeps", verb, "smoke"] for verb in sweeping.WHAT if verb != "run"),
]


@pytest.mark.parametrize("words", PRINTING, ids=" ".join)
def test_a_reader_that_is_gone_is_no_error(words, tmp_path):
    """`| head -1`: whatever prints."""
    more = ["--runs", str(tmp_path)] if "smoke" in words else []
    command = [sys.executable, "-m", *words, *more]
    done = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    done.stdout.close()
    assert done.stderr.read() == b"" and done.wait() in (0, 1)  # argparse says 0 for its help


def test_an_interrupt_is_a_status(capsys):
    def stop():
        raise KeyboardInterrupt("saved")

    assert answered(stop)() == 130 and "saved" in capsys.readouterr().err


@pytest.mark.parametrize("number", STOP)
@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_hears_every_signal_to_stop(capsys, monkeypatch, tool, number):
    heard = Tool("wait", lambda parser: None, lambda chosen: os.kill(os.getpid(), number))
    monkeypatch.setitem(TOOLS, tool, heard)
    assert verbs.main([tool]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("words, said", [((), "interrupted"), (("saved it",), "saved it")])
def test_an_interruption_is_always_said(capsys, words, said):
    @answered
    def interrupted():
        raise KeyboardInterrupt(*words)

    assert interrupted() == 130
    assert capsys.readouterr().err == f"\n{said}\n"
