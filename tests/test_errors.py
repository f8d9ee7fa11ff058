"""What is said of an error: one line with the file and the cure, never a traceback."""

import csv
import errno
import json
import os
import pickle
import re
import resource
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
from experiments.runs import errors
from experiments.runs.errors import answered, report, told
from lightning_modules.networks.pipeline_folder import writing


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
        (errno.EACCES, "no permission .*RUNS_DIR"),
        (errno.EROFS, "read-only file system; name another place"),
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


def test_weights_that_do_not_fit_on_the_disk_are_no_damaged_file(tmp_path, monkeypatch):
    """safetensors has errors of its own for what the system says; a limit stands for the disk."""
    before, heard = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError) as full, writing(tmp_path):
            save_file({"a": torch.zeros(1000)}, tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)
    assert full.value.errno == errno.EFBIG
    said = told(full.value)
    assert said.startswith(f"{tmp_path}: larger than a file may be") and "damaged" not in said
