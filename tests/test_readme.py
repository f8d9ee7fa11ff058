"""What README.md names exists: commands with their arguments, make targets, files, links."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from experiments import __main__ as experiments
from experiments.launch.execute import verb_module
from experiments.runs.recipe import VERBS, Library, parse_settings, resolve
from experiments.verbs.tools import TOOLS
from sweeps import __main__ as sweeps
from sweeps.plan.graph import load_sweep

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
VARIABLES = set(re.findall(r"^([A-Z]+) *\??=", MAKEFILE, re.M))
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.M | re.S)
INLINE = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", TEXT, flags=re.M | re.S))
LINES = [line for kind, text in FENCED if not kind for line in text.splitlines()]
MINE = next(text for _, text in FENCED if text.startswith("# experiments/scale/mine.yaml"))
COMMANDS = re.compile(r"(?:\S*python3? -m |make\b).*")
LAUNCHED = re.compile(r"(?:srun|torchrun) .*-m (experiments .*)")
PATH = re.compile(r"\.?[\w*-]+(?:[./][\w*-]+)*/?")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Ours, with the scale that README tells its reader to write."""
    scales = tmp_path_factory.mktemp("library") / "scale"
    shutil.copytree(Library().scales, scales)
    (scales / "mine.yaml").write_text(MINE)
    return Library(scales=scales)


def commands():
    """Every command, as its words; what follows a "#" explains it."""
    for text in [*INLINE, *LINES]:
        for code in [text, *re.findall(r"`([^`]+)`", text)]:
            if COMMANDS.fullmatch(code.strip()):
                yield shlex.split(code, comments=True)


def paths():
    """Everything in code that looks like a place in the repository."""
    for code in INLINE:
        is_path = "/" in code or code.endswith((".py", ".yaml", ".md", ".txt"))
        if is_path and PATH.fullmatch(code) and not code.startswith("runs/"):
            yield code


def test_commands_paths_and_verbs_are_found_at_all():
    """Else the other tests would pass on a README that they cannot read."""
    found = [" ".join(words[:2]) for words in commands()]
    assert {"make ablation", "make test", "make help"} <= set(found)
    assert sum("python" in words for words in found) >= 3 and len(set(paths())) >= 12


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_is_one(words, library):
    program, *rest = words
    if program == "make":
        settings = [word for word in rest if "=" in word]
        assert {word for word in rest if "=" not in word} <= TARGETS
        assert {word.partition("=")[0] for word in settings} <= VARIABLES
        return
    assert program in ("python", "python3", ".venv/bin/python") and rest[0] == "-m"
    module, *arguments = rest[1:]
    if module == "sweeps":
        chosen = sweeps._parser().parse_args(arguments)
        load_sweep(chosen.sweep, chosen.scale, chosen.seeds, library=library)
    elif module == "experiments":
        chosen, late = experiments.parser(library).parse_known_args(arguments)
        if chosen.verb in TOOLS:
            assert not late
            return
        run = re.fullmatch(r"runs/(\w+)-[0-9a-f]{8}", chosen.what)
        settings = parse_settings([*chosen.settings, *late])
        recipe = run[1] if run else chosen.what
        assert resolve(recipe, chosen.scale, settings, library).verb == chosen.verb
    else:
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()


def test_wans_commands_read_what_the_readers_scale_says_and_nothing_else(library):
    """And by hand the same runs are made as by the sweep."""
    said, sweep = yaml.safe_load(MINE), load_sweep("ablation", "mine", library=library)
    found = []
    for words in commands():
        if words[2:3] == ["experiments"] and "mine" in words and words[3] not in TOOLS:
            chosen, late = experiments.parser(library).parse_known_args(words[3:])
            settings = parse_settings([*chosen.settings, *late])
            run = resolve(chosen.what, chosen.scale, settings, library)
            found.append(run)
            assert run.name in sweep.runs or any(key.startswith("needs.") for key in settings)
    assert {run.verb for run in found} == set(VERBS)
    everything = [each for run in [*found, *sweep.runs.values()] for each in run.closure().values()]
    folders = {
        where for run in everything for where in run.recipe["needs"].values() if "/" in where
    }
    wanted = {said[key] for key in ("wan", "wan_score", "openvid", "vidprom", "vbench")}
    assert {where for where in folders if not re.fullmatch(r"\./[A-Z]+", where)} == wanted


def fits():
    """What is trained, also when another program starts it, as the words behind the module."""
    for words in commands():
        if words[2:4] == ["experiments", "fit"]:
            yield words[3:]
    for line in LINES:
        if launched := LAUNCHED.fullmatch(line):
            yield shlex.split(launched[1])[1:]


@pytest.mark.parametrize("words", fits(), ids=" ".join)
def test_a_fit_would_begin(words, library):
    """Its settings go together, as far as that can be said without files and devices."""
    chosen, late = experiments.parser(Library()).parse_known_args(words)
    if not chosen.what.startswith("runs/"):
        settings = parse_settings([*chosen.settings, *late])
        verb_module("fit").check(resolve(chosen.what, chosen.scale, settings, library).recipe)


def test_both_launchers_are_shown():
    assert sum(bool(LAUNCHED.fullmatch(line)) for line in LINES) == 2


@pytest.mark.parametrize("path", sorted(set(paths())))
def test_a_path_leads_somewhere(path):
    assert any(ROOT.glob(path)), f"README.md names {path}"


def test_a_test_that_is_named_is_there():
    defined = "".join(file.read_text() for file in (ROOT / "tests").glob("test_*.py"))
    named = {code for code in INLINE if re.fullmatch(r"test_\w+", code)}
    assert named and [name for name in sorted(named) if f"def {name}(" not in defined] == []


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)\s]+)\)|<img[^>]*src=\"([^\"]+)\"", TEXT):
        target = next(filter(None, target))
        if target.startswith("#"):
            headings = re.findall(r"^#+ (.*)$", TEXT, re.M)
            assert target[1:] in {
                re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings
            }
        elif not re.match(r"https?://", target):
            assert (ROOT / target.partition("#")[0]).exists(), target


def test_the_verbs_are_those_there_are():
    assert f"verbs `{' '.join(VERBS)}`" in TEXT
