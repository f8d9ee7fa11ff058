"""Both command lines: quick help without heavy imports, clear refusals, plan, status, execution."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import __main__ as verbs
from experiments.launch.checks import problem
from experiments.launch.execute import execute
from experiments.runs.folder import STATES, RunFolder
from experiments.runs.recipe import VERBS, Library, resolve
from experiments.verbs.tools import TOOLS
from sweeps import __main__ as sweeping

FIXTURES = Path(__file__).parent / "fixtures"
ROOT = FIXTURES.parent.parent
LIBRARY = Library(FIXTURES / "recipes", FIXTURES / "scale")
HEAVY = ("torch", "lightning", "numpy", "diffusers", "transformers")
LOADED = (
    "import runpy, sys\n"
    "sys.argv = [''] + {words!r}\n"
    "try: runpy.run_module({module!r}, run_name='__main__')\n"
    "except SystemExit as end: code = end.code\n"
    "print('HEAVY', [name for name in {heavy!r} if name in sys.modules], code)"
)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("experiments", ["--help"]),
        *[("experiments", [verb, "--help"]) for verb in (*VERBS, *TOOLS)],
        ("sweeps", ["--help"]),
        *[("sweeps", [verb, "--help"]) for verb in sweeping.WHAT],
    ],
)
def test_help_imports_nothing_heavy(module, words):
    code = LOADED.format(words=words, module=module, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().endswith("HEAVY [] 0"), done.stderr
    assert "usage: python -m" in done.stdout


def test_planning_imports_nothing_heavy():
    code = LOADED.format(
        words=["plan", str(FIXTURES / "diamond.yaml")], module="sweeps", heavy=HEAVY
    )
    code = (
        "import experiments.runs.recipe as r; from pathlib import Path\n"
        f"r.Library.__init__.__defaults__ = (Path({str(LIBRARY.recipes)!r}),"
        f" Path({str(LIBRARY.scales)!r}))\n{code}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().endswith("HEAVY [] 0"), done.stdout + done.stderr
    assert "4 cells, 13 runs" in done.stdout


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    """The command line with the fixture library and verbs; returns (status, stdout, stderr)."""
    monkeypatch.syspath_prepend(str(FIXTURES))
    monkeypatch.setattr(verbs, "execute", lambda folder: execute(folder, None, "fixture_verbs"))
    monkeypatch.setattr(verbs, "problem", lambda recipe: problem(recipe, "fixture_verbs"))

    def call(*words):
        status = verbs.main([*words, "--runs", str(tmp_path)], LIBRARY)
        return status, *capsys.readouterr()

    return call


def test_a_missing_need_is_named_with_its_command(fit, tmp_path):
    status, _, err = fit("fit", "join", "few_steps=2")
    need = resolve("join", "tiny", {}, LIBRARY).needs["student"].name
    assert status == 2 and f"student: {need} (new)" in err
    assert f"python -m experiments fit {tmp_path / need} --with-needs" in err


def test_only_what_is_executed_gets_the_launch_settings(fit, tmp_path):
    run = resolve("left", "tiny", {}, LIBRARY)
    need = RunFolder(tmp_path / run.needs["student"].name)

    def intervals():
        folders = (RunFolder(tmp_path / each.name) for each in run.closure().values())
        return [folder.recipe["launch"]["interval"] for folder in folders]

    fit("fit", "left", "launch.interval=1")
    assert intervals() == [1, 1]
    fit("fit", "left", "launch.interval=2")
    assert intervals() == [1, 2], "its need is not executed"
    with need.lock():
        status, _, err = fit("fit", "left", "launch.interval=3", "--with-needs")
        assert status == 2 and f"{need.name} is in other hands (process" in err
        assert intervals() == [1, 2]
    assert fit("fit", "left", "launch.interval=3", "--with-needs")[0] == 0
    assert intervals() == [3, 3]


def test_needs_are_executed_on_demand_and_a_finished_run_says_so(fit, tmp_path):
    status, out, _ = fit("fit", "join", "--with-needs", "few_steps=2")
    assert status == 0 and out.count("is done") == 3
    name = resolve("join", "tiny", {"few_steps": 2}, LIBRARY).name
    again = fit("fit", str(tmp_path / name))
    assert again[0] == 0 and f"{name} is done: " in again[1]
    assert fit("fit", str(tmp_path / name / "recipe.yaml"))[0] == 0


def test_a_settings_that_a_recipe_fixes_is_pointed_out(fit):
    assert "base fixes seed itself" in fit("fit", "base", "seed=3")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "join", "few_stpes=2"], "did you mean 'few_steps'"),
        (["fit", "jion"], "did you mean 'join'"),
        (["fit", "join", "--scale", "tinny"], "did you mean 'tiny'"),
        (["sample", "join"], "for another verb: python -m experiments fit"),
        (["fit", "join", "quickly"], "written key=value"),
        (["fit", "nowhere.yaml"], "no resolved recipe there"),
        (["fit", str(FIXTURES / "recipes" / "join.yaml")], "run by its name"),
    ],
)
def test_mistakes_are_answered_in_one_line(fit, words, message):
    status, _, err = fit(*words)
    assert status == 2 and message in err and "Traceback" not in err and err.count("\n") == 1


def test_the_whole_closure_is_checked_before_the_first_run(fit, tmp_path, monkeypatch):
    """All that is wrong at once, each with its run."""
    wrong = {"base": "fit.act: no", "join": "fit.few_steps: no"}
    monkeypatch.setattr(verbs, "problem", lambda recipe: wrong.get(recipe["recipe"], ""))
    monkeypatch.setattr(verbs, "execute", None)
    status, out, err = fit("fit", "join", "--with-needs")
    assert status == 2 and not out and "nothing was started, 2 of 3 recipes cannot run" in err
    for recipe, text in wrong.items():
        assert f"  {resolve(recipe, 'tiny', {}, LIBRARY).name}: {text}" in err
    assert not list(tmp_path.iterdir()), "no folder of a run that never was"


def test_a_need_that_may_come_from_the_hub_is_not_looked_for_here(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FIXTURES))
    monkeypatch.chdir(tmp_path)
    recipe = resolve("base", "tiny", {}, LIBRARY).recipe
    about = {where: problem(recipe | {"needs": {"student": where}}, "fixture_verbs")
             for where in ("Wan-AI/Wan2.1", "./nothing", "base-01234567")}  # fmt: skip
    assert [where for where, text in about.items() if text] == ["./nothing"]


def test_commands_that_are_printed_can_be_typed(tmp_path, capsys, monkeypatch):
    """A blank and brackets in the path."""
    monkeypatch.setattr(verbs, "problem", lambda recipe: "")
    runs = tmp_path / "my runs [v1]"
    assert verbs.main(["fit", "join", "--runs", str(runs)], LIBRARY) == 2
    assert f"fit '{runs}/" in capsys.readouterr().err
    RunFolder.create(resolve("base", "tiny", {}, LIBRARY), runs).mark_failed("ValueError: [red]no")
    words = [str(FIXTURES / "diamond.yaml"), "--runs", str(runs)]
    assert sweeping.main(["status", *words], LIBRARY) == 0
    said = capsys.readouterr().out
    assert f"--runs '{runs}' --why base-" in said and "ValueError: [red]no" in said


def test_a_failure_ends_with_its_reason_and_log(fit):
    status, _, err = fit("fit", "right", "act=fail", "--with-needs")
    assert status == 1 and "the loss is NaN" in err and "log.txt" in err


def test_plan_and_status_read_the_disk_and_start_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    words = [str(FIXTURES / "diamond.yaml"), "--runs", str(tmp_path)]
    assert sweeping.main(["plan", *words], LIBRARY) == 0
    text = capsys.readouterr().out
    assert "4 cells, 13 runs (28 if nothing were shared): 0 done, 13 to run" in text
    assert "unknown" in text and not list(tmp_path.iterdir())
    base = RunFolder.create(resolve("base", "tiny", {}, LIBRARY), tmp_path)
    base.record({"wall_s": 61, "device_s": 61, "scale": "tiny", "recipe": "base"})
    base.mark_done()
    left = RunFolder.create(resolve("left", "tiny", {}, LIBRARY), tmp_path)
    left.mark_failed("ValueError: no")
    assert sweeping.main(["plan", *words], LIBRARY) == 0
    assert "1 done, 12 to run" in capsys.readouterr().out
    assert sweeping.main(["status", *words], LIBRARY) == 0
    text = capsys.readouterr().out
    assert "1:01" in text and "ValueError: no" in text and "11 new" in text


def test_a_plan_of_very_many_runs_counts_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sweeps.run.status.LISTED", 12)
    RunFolder.create(resolve("base", "tiny", {}, LIBRARY), tmp_path).mark_done()
    words = ["plan", str(FIXTURES / "diamond.yaml"), "--runs", str(tmp_path)]
    assert sweeping.main(words, LIBRARY) == 0
    text = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[2:5] for line in text.splitlines() if line.split()}
    assert rows["base"] == ["1", "1", "done"] and "base-" not in text
    counts = [int(row[0]) for row in rows.values() if row and row[0].isdigit() and row[2] in STATES]
    assert sum(counts) == 13


@pytest.mark.parametrize("what", ["table", "plan", "status"])
def test_a_reader_that_has_had_enough_is_no_error(what, tmp_path):
    words = [sys.executable, "-m", "sweeps", what, "smoke", "--runs", str(tmp_path)]
    done = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    done.stdout.close()
    assert (done.stderr.read(), done.wait()) == (b"", 1)


def test_sweep_mistakes(capsys, tmp_path):
    assert sweeping.main(["plan", "ablatoin"]) == 2
    assert "did you mean 'ablation'" in capsys.readouterr().err
    words = ["run", str(FIXTURES / "diamond.yaml"), "--cluster", "slrm", "--runs", str(tmp_path)]
    assert sweeping.main(words, LIBRARY) == 2
    assert "unknown cluster 'slrm'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sweeping.main(["plan", "--seeds", "0,zero"])
    assert "list of distinct numbers" in capsys.readouterr().err


def test_run_folders_move_between_machines(fit, tmp_path):
    """A run folder finds its needs beside it: nothing in it names the place where it was made."""
    fit("fit", "left", "--with-needs")
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    name = resolve("left", "tiny", {}, LIBRARY).name
    (moved / name / "done.json").unlink()
    status, out, _ = fit("fit", str(moved / name))
    assert status == 0 and json.loads((moved / name / "done.json").read_text())["run"] == name


def test_make_help_needs_no_environment(tmp_path):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=tmp_path, capture_output=True, text=True
    )
    words = (
        "ablation",
        "test",
        "test-all",
        "plan",
        "table",
        "tensorboard",
        "lint",
        "clean",
        "SCALE=tiny",
    )
    assert done.returncode == 0 and all(word in done.stdout for word in words)


def test_each_benchmark_starts_in_a_folder_of_its_own(tmp_path):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt", "ready"):
        (tmp_path / name).touch()
    command = [
        "make",
        "--no-print-directory",
        "benchmark",
        "READY=ready",
        "PY=echo python",
        "RUNS=elsewhere",
    ]
    told = [
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout.split()
        for _ in range(2)
    ]
    folders = [words[words.index("--runs") + 1] for words in told]
    assert [words[:3] for words in told] == [["measuring", "in", folder] for folder in folders]
    assert len(set(folders)) == 2
    for folder in folders:
        assert folder.startswith("elsewhere/benchmark-") and (tmp_path / folder).is_dir()


@pytest.mark.parametrize("where", ["runs/base-0123abce", "base-0123abce", "there/base"])
def test_a_run_folder_that_is_not_there_is_not_taken_for_a_recipe(tmp_path, capsys, where):
    (tmp_path / "base-0123abcd").mkdir()
    (tmp_path / "base-0123abcd" / "recipe.yaml").touch()
    where = str(tmp_path / where.rpartition("/")[2]) if where.startswith("runs") else where
    assert verbs.main(["fit", where, "--runs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{where}: there is no such run folder" in said
    assert ("did you mean 'base-0123abcd'" in said) == where.startswith(str(tmp_path))


def test_a_run_takes_no_scale(tmp_path, capsys):
    folder = RunFolder.create(resolve("base", "tiny", {}, LIBRARY), tmp_path)
    assert verbs.main(["fit", str(folder.path), "--scale", "tiny"]) == 2
    assert "takes no settings and no --scale" in capsys.readouterr().err
