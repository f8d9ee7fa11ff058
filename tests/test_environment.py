"""A real sweep with its page, in processes, under environments that must decide nothing."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from import_graph import files

from experiments.runs.environment import slurms, workers

ROOT = Path(__file__).parent.parent
# The smallest sweep that curates, trains, samples, scores and draws figures.
SWEEP = """
title: "A student, hardly trained – größer"
settings:
  data: {clips: 32, prompts: 32, heldout: 64, reference: 32}
  sampling: {count: 16, batch: 16}
  stages: {base: {steps: 2}, stage1: {steps: 2}}
  launch: {workers: 1}
cells:
  - axes: {few_steps: [1, 2]}
    runs:
      before:
        recipe: score_law_clips
        needs:
          samples:
            recipe: sample
            few_steps: ${few_steps}
            needs: {student: {recipe: stage2_ar_diffusion}}
"""
LONG = "t m p/" + "x" * 90  # beyond what the name of a socket may have
ENVIRONMENTS = {
    "a notebook": {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "no locale": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "no home": {
        "HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent/cache",
        "XDG_CONFIG_HOME": "/nonexistent/config", "MPLCONFIGDIR": "/proc/none",
    },
    "a long folder for temporary files": {"TMPDIR": LONG},
    "torchrun": {
        "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8",
        "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1",
    },
    "a shell of srun": {
        "SLURM_JOB_ID": "5", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "8",
        "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_STEP_NODELIST": "n1",
    },
    "an odd terminal": {"TERM": "dumb", "COLUMNS": "20", "FORCE_COLOR": "1"},
    "warnings are errors": {"PYTHONWARNINGS": "error"},
    "threads": {"OMP_NUM_THREADS": "7", "MKL_NUM_THREADS": "3"},
    "others": {
        "CUDA_VISIBLE_DEVICES": "", "http_proxy": "http://192.0.2.1:9", "TZ": "Mars/Phobos",
        "https_proxy": "http://192.0.2.1:9", "GIT_DIR": "/nonexistent", "NO_COLOR": "1",
        "PYTHONSTARTUP": "/nonexistent.py", "PYTHONOPTIMIZE": "2",
    },
}  # fmt: skip


def sweep(folder, environment):
    """The hashes of all weights and shards, the scores and the table of the sweep."""
    folder = folder / "my 'runs' [v1]"
    folder.mkdir(parents=True)
    (folder / "my project").symlink_to(ROOT)
    (folder / "small.yaml").write_text(SWEEP, encoding="utf-8")
    plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    if "TMPDIR" in environment:
        environment = environment | {"TMPDIR": str(folder / environment["TMPDIR"])}
        os.makedirs(environment["TMPDIR"])
    environment = plain | {"PYTHONPATH": f"{folder}:{folder / 'my project'}"} | environment
    for verb, more in (("run", ["--workers", "1"]), ("table", [])):
        command = ["-m", "sweeps", verb, "small.yaml", "--scale", "gaussian", *more]
        done = subprocess.run(
            [sys.executable, *command, "--runs", "runs here"],
            env=environment, cwd=folder, capture_output=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")
    tables = folder / "runs here" / "tables" / "small-gaussian"
    page = (tables / "index.html").read_text(encoding="utf-8")
    assert "größer" in page and "<svg" in page
    scores = [file.read_text() for file in sorted(folder.glob("runs here/*/scores.jsonl"))]
    assert len(scores) == 2
    return scores, (tables / "table.csv").read_text()


def test_a_hostile_environment_decides_nothing(tmp_path):
    """All at once, but for what contradicts another."""
    sweep(tmp_path, {k: v for each in ENVIRONMENTS.values() for k, v in each.items()})


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return sweep(tmp_path_factory.mktemp("plain"), {})


GROUPS = (
    ("a notebook", "ascii", "threads", "no home", "torchrun", "warnings are errors"),
    (
        "no locale",
        "an odd terminal",
        "a long folder for temporary files",
        "a shell of srun",
        "others",
    ),
)
"""What does not touch the same things goes together: each is a whole sweep."""


def test_every_environment_is_in_a_group():
    assert sorted(name for group in GROUPS for name in group) == sorted(ENVIRONMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS, ids=", ".join)
def test_no_variable_decides(tmp_path, expected, group):
    together = {k: v for name in group for k, v in ENVIRONMENTS[name].items()}
    assert sweep(tmp_path, together) == expected


OPENING = ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile")
NOT_PYTHONS = ("av.", "Image.", "lmdb.", "tarfile.", "zipfile.", "os.open", "webbrowser.")


def leaves_open(call):
    """Whether text is read or written in an encoding that the locale decides."""
    called = ast.unparse(call.func)
    keywords = {keyword.arg for keyword in call.keywords}
    given = [*call.args, *(each.value for each in call.keywords if each.arg == "mode")]
    words = [each.value for each in given if isinstance(each, ast.Constant)]
    modes = [word for word in words if isinstance(word, str) and re.fullmatch("[rwabx+t]+", word)]
    name = called.rpartition(".")[2]
    if "encoding" in keywords or called.startswith(NOT_PYTHONS):
        return False
    if name in ("run", "Popen", "check_output", "check_call"):
        return bool({"text", "universal_newlines"} & keywords)
    if name in OPENING:
        binary = name.endswith("File") and not modes
        return not binary and not any("b" in mode for mode in modes)
    return name == "FileHandler" or (name in ("read_text", "write_text") and "." in called)


@pytest.mark.parametrize("file", files(ROOT))
def test_text_has_an_encoding(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = [f"{file}:{call.lineno}: {ast.unparse(call)}" for call in calls if leaves_open(call)]
    assert not found, "say encoding='utf-8'"


@pytest.mark.parametrize(
    ("code", "open"),
    [
        ("open(path)", True),
        ("open(path, 'w')", True),
        ("open(path, 'ab')", False),
        ("path.open('rb', buffering=0)", False),
        ("path.open()", True),
        ("open(folder / 'b')", True),
        ("av.open(path, 'w')", False),
        ("path.read_text()", True),
        ("path.write_text(text, encoding='utf-8')", False),
        ("atomic.write_text(path, text)", True),
        ("write_text(path, text)", False),  # datamodules.atomic's
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command, encoding='utf-8')", False),
        ("tempfile.TemporaryFile()", False),
        ("tempfile.NamedTemporaryFile('w')", True),
        ("logging.FileHandler(path)", True),
    ],
)
def test_the_test_of_encodings_can_fail(code, open):
    assert leaves_open(ast.parse(code, mode="eval").body) == open


def settled(code, **environment):
    """What a program says that settles first."""
    program = f"from experiments.runs.environment import settle\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_user_without_an_entry_has_a_name_and_a_home(tmp_path):
    """What torch, for its compiler's cache, and others ask for."""
    unknown = "import pwd, pathlib, getpass\ndef nobody(_): raise KeyError\npwd.getpwuid = nobody\n"
    asked = "settle(); print(getpass.getuser(), pathlib.Path.home(), pathlib.Path.home().is_dir())"
    name, home, there = settled(unknown + asked, TMPDIR=str(tmp_path)).split()
    assert name == str(os.getuid()) and Path(home).parent == tmp_path and there == "True"
    assert settled(unknown + asked, HOME="/h", USER="me") == "me /h False"


def test_sockets_fit_into_the_folder_of_temporary_files(tmp_path):
    long = tmp_path / LONG
    long.mkdir(parents=True)
    asked = "import tempfile; settle(); print(tempfile.gettempdir())"
    link = Path(settled(asked, TMPDIR=str(long)))
    assert len(str(link)) < 60 and link.samefile(long)
    assert settled(asked, TMPDIR=str(long)) == str(link)
    link.unlink()
    short = Path(settled(asked))
    assert not short.is_symlink()


def test_every_locale_speaks_utf8():
    asked = "import sys, locale; settle(); print(sys.flags.utf8_mode, 'gr\\xf6\\xdfer')"
    assert settled(asked, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0") == "1 größer"
    assert settled(asked, PYTHONIOENCODING="ascii").endswith(r"gr\xf6\xdfer")
    asked = "import os; settle(); print(os.environ.get('PYTHONIOENCODING'))"
    assert settled(asked, PYTHONIOENCODING="ascii") == "None", "children write UTF-8"


def test_a_worker_is_a_rank_of_nothing():
    """But it is where it is: its lease names the job, its jobs find Slurm."""
    stay = {"SLURM_JOB_ID": "5", "SLURM_CONF": "/etc/slurm.conf", "HOME": "/h", "RANKING": "1"}
    of_launchers = ENVIRONMENTS["torchrun"] | ENVIRONMENTS["a shell of srun"]
    assert workers(of_launchers | stay) == stay
    assert slurms(stay | {"SBATCH_QOS": "a"}, ["SBATCH_QOS"]).keys() == {
        "SLURM_CONF", "HOME", "RANKING", "SBATCH_QOS",
    }  # fmt: skip


@pytest.mark.parametrize("runs", ["my runs", "it's [v1] $HOME", 'a "b"'])
def test_make_quotes_its_words(runs):
    """What the shell would get, without a tool being called."""
    for target in ("ablation", "theory", "plan", "status", "table", "tensorboard", "benchmark"):
        command = [
            "make",
            "-n",
            "-o",
            ".venv/.installed",
            target,
            f"RUNS={runs.replace('$', '$$')}",
        ]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
        words = re.findall(r"(?:--runs|--logdir|mkdir -p) (\S.*?)(?= --|;|$)", said, re.M)
        words = [word for word in words if "folder" not in word]
        assert words, said
        for word in words:
            shell = ["sh", "-c", f"printf %s {word}"]
            assert subprocess.run(shell, capture_output=True, text=True).stdout == runs, word
