"""Whatever a user gets wrong: one line with the file and the cure, never a traceback."""

import argparse
import csv
import errno
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import safe_open, save_file

from datamodules.atomic import naming, replacing, write_text
from datamodules.signals import STOP
from experiments import __main__ as verbs
from experiments.runs import errors
from experiments.runs.errors import answered, report, told
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


def raised(action) -> BaseException:
    """What a call raises."""
    try:
        action()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


# -- single errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full .* MiB free of .*; make room"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EACCES, "no permission .*--runs"),
        (errno.EROFS, "read-only file system; use another place"),
        (errno.EISDIR, "a folder where a file belongs"),
        (errno.ENOENT, "no such file"),
        (errno.EMFILE, "too many open files .*ulimit -n"),
        (errno.EIO, "dmesg"),
        (errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY)),  # one that nobody thought of
    ],
)
def test_errors_of_the_system_have_a_cure(tmp_path, number, words):
    file = tmp_path / "file.txt"
    line = told(OSError(number, os.strerror(number), str(file)))
    assert line.startswith(f"{file}: ") and "\n" not in line
    assert re.search(words, line), line


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    line = told(raised(lambda: write_text(tmp_path / "file" / "deep" / "x.txt", "")))
    assert f"{tmp_path / 'file'} is a file where a folder belongs" in line


def test_a_name_that_is_too_long_says_how_long(tmp_path):
    line = told(raised(lambda: (tmp_path / ("x" * 300)).write_text("")))
    assert "a name of 300 bytes" in line and "shorter" in line


def unreadable(folder: Path) -> dict[str, Path]:
    """Files that their parsers refuse."""
    files = {name: folder / f"bad.{name}" for name in READERS}
    for file in files.values():
        file.write_bytes(b"\x80\x04\xff\xfe{[: \xff\x00")
    return files


READERS = {
    "csv": lambda file: list(csv.reader(file.open(encoding="latin-1", newline=""), strict=True)),
    "json": lambda file: json.loads(file.read_bytes()[4:].decode("latin-1")),
    "yaml": lambda file: yaml.safe_load(file.open("rb")),
    "txt": lambda file: file.read_text("utf-8"),
    "zip": lambda file: zipfile.ZipFile(file),
    "tar": lambda file: tarfile.open(file),  # noqa: SIM115
    "safetensors": lambda file: safe_open(file, "pt").__enter__(),
    "pickle": lambda file: pickle.loads(file.read_bytes()),
    "pt": lambda file: torch.load(file, weights_only=True),
}


@pytest.mark.parametrize("kind", READERS)
def test_errors_of_parsers_name_the_file(tmp_path, kind):
    file = unreadable(tmp_path)[kind]
    if kind == "csv":
        file.write_text('a,"b"c\n')
    line = told(raised(lambda: READERS[kind](file)))
    assert line.startswith(f"{file}: damaged, cut off") and "\n" not in line
    assert "bug" not in line


def test_errors_of_torch_have_a_cure():
    linear = torch.nn.Linear(3, 3)
    line = told(raised(lambda: linear(torch.zeros(2, 4))))
    assert "shapes that do not fit" in line and "2x4 and 3x3" in line
    line = told(raised(lambda: linear.load_state_dict({"weight": torch.zeros(2, 2)})))
    assert "do not belong together" in line and "\n" not in line
    line = told(raised(lambda: torch.empty(2**60)))
    assert "launch.batch_per_device" in line and "can't allocate memory" in line


def test_what_we_say_ourselves_is_left_as_it_is():
    def refuse():
        raise ValueError("recipe.yaml: seed: no; cure")

    assert told(raised(refuse)) == "recipe.yaml: seed: no; cure"
    assert report(raised(refuse)).endswith("recipe.yaml: seed: no; cure")


@pytest.mark.parametrize("action", [lambda: {}["x"], lambda: int("x"), lambda: [].pop()])
def test_a_mistake_of_ours_is_called_a_bug(action):
    line = told(raised(action))
    assert "test_errors.py, line" in line and "bug of the program" in line and "\n" not in line


def test_the_traceback_is_where_the_message_says(capsys, monkeypatch):
    broken = answered(lambda: {}["x"])
    assert broken() == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and f"set {errors.SHOW}=1" in said
    monkeypatch.setenv(errors.SHOW, "1")
    assert broken() == 2 and "Traceback" in capsys.readouterr().err


# -- a full disk -----------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


WRITERS = {
    "bytes": lambda part: part.write_bytes(bytes(2**20)),
    "torch": lambda part: torch.save(torch.zeros(2**18), part),
    "safetensors": lambda part: save_file({"x": torch.zeros(2**18)}, part),
}


@pytest.mark.parametrize("how", WRITERS)
def test_a_full_disk_names_the_file_and_keeps_the_old_one(small_disk, how):
    file = small_disk / "weights.bin"
    file.write_text("old")

    def write():
        with replacing(file) as part:
            WRITERS[how](part)

    line = told(raised(write))
    assert line.startswith(f"{file}: the disk is full") and str(small_disk) in line
    assert file.read_text() == "old" and list(small_disk.iterdir()) == [file]


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path):
    def shape():
        with naming(tmp_path / "x"):
            raise RuntimeError("shapes")

    assert isinstance(raised(shape), RuntimeError)


def test_a_run_on_a_full_disk_says_so_and_goes_on_with_room(small_disk, tmp_path, capfd):
    """The fixtures' verbs need no torch; only the disk is short: of recipe, log, record, result."""
    from experiments.launch.execute import execute
    from experiments.runs.folder import RunFolder
    from experiments.runs.recipe import Library, resolve

    fixtures = Path(__file__).parent / "fixtures"
    run = resolve("base", "tiny", {}, Library(fixtures / "recipes", fixtures / "scale"))
    sys.path.insert(0, str(fixtures))
    filler = small_disk / "filler"
    states = set()
    for left in range(0, 48, 4):
        shutil.rmtree(small_disk / run.name, ignore_errors=True)
        filler.write_bytes(bytes((64 - left) * 1024))
        try:
            execute(RunFolder.create(run, small_disk), package="fixture_verbs")
        except OSError as error:
            line = told(error)
            assert line.startswith(str(small_disk)) and "the disk is full" in line
            states.add("full")
        else:
            states.add("done")
        filler.unlink()
        execute(RunFolder.create(run, small_disk), package="fixture_verbs")
        assert RunFolder(small_disk / run.name).done
    sys.path.remove(str(fixtures))
    assert states == {"full", "done"}
    assert "Traceback" not in capfd.readouterr().err


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
