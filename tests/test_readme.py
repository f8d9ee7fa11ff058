"""What README.md and docs/ name exists: commands with their arguments, make targets, files, links.

A word in capitals (RUN, FOLDER) is the reader's to fill in.
"""

import re
import shlex
import shutil
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest
import yaml
from import_graph import PACKAGES

from experiments import __main__ as experiments
from experiments.launch.execute import verb_module
from experiments.launch.hardware import Launch
from experiments.runs.files import load_recipe
from experiments.runs.recipe import VERBS, Library, parse_settings, recipes, resolve
from experiments.verbs.tools import TOOLS
from lightning_modules import stages
from lightning_modules.networks.wan.attention import Backend
from sweeps import __main__ as sweeps
from sweeps.plan.graph import load_sweep

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
README = PAGES["README.md"]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
VARIABLES = set(re.findall(r"^([A-Z]+) *\??=", MAKEFILE, re.M))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LANGUAGES = {"sh", "text", "yaml", "python", "mermaid"}
PROSE = {page: FENCE.sub("", text) for page, text in PAGES.items()}
FENCED = [(page, *block) for page, text in PAGES.items() for block in FENCE.findall(text)]
INLINE = [(page, code) for page, text in PROSE.items() for code in re.findall(r"`([^`\n]+)`", text)]
LINES = [
    (page, line)
    for page, language, text in FENCED
    if language == "sh"
    for line in text.replace("\\\n", " ").splitlines()
]
MINE = next(text for _, _, text in FENCED if "extends: wan1.3b\nwan: " in text)
COMMANDS = re.compile(r"(?:\S*python3? |make\b).*")
OTHER_COMMANDS = re.compile(r"(?:hf download|sh|srun|torchrun|\S*pip install) .*")
LAUNCHED = re.compile(r"(?:srun|torchrun) .*-m (experiments .*)")
PATH = re.compile(r"\.?[\w*-]+(?:[./][\w*-]+)*/?")
TOP = {path.name for path in ROOT.iterdir()} - {"runs"}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Ours, with the scale that docs/wan.md tells its reader to write."""
    scales = tmp_path_factory.mktemp("library") / "scale"
    shutil.copytree(Library().scales, scales)
    (scales / "mine.yaml").write_text(MINE)
    return Library(scales=scales)


def added(page, code):
    """Whether the reader adds it: the worked example, which test_extending.py executes."""
    return page == "docs/extending.md" and "clean_regression" in code


def commands():
    """Every command, as its words; what follows a "#" explains it."""
    for page, code in [*INLINE, *LINES]:
        if COMMANDS.fullmatch(code.strip()) and not added(page, code):
            yield shlex.split(code, comments=True)


def paths():
    """Everything in code that looks like a path in the repository, with the page that names it."""
    for page, code in INLINE:
        named = PATH.fullmatch(code) and "/" in code and code.split("/")[0] in TOP
        if named and not added(page, code):
            yield page, code


def test_commands_paths_and_verbs_are_found_at_all():
    """Else the other tests would pass on pages that they cannot read."""
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
    assert program in ("python", "python3", ".venv/bin/python")
    if rest[0] != "-m":
        script = (ROOT / rest[0]).read_text()
        assert [word for word in rest if word.startswith("--") and word not in script] == []
        return
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
        assert resolve(recipe, chosen.scale or "tiny", settings, library).verb == chosen.verb
    else:
        assert find_spec(module)


def test_blocks_say_what_they_hold():
    assert [(page, text) for page, language, text in FENCED if language not in LANGUAGES] == []


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_shell_block_holds_commands_only(page, line):
    assert COMMANDS.fullmatch(line) or OTHER_COMMANDS.fullmatch(line), f"{page}: {line}"


def test_what_pip_installs_is_an_extra():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = [extras for _, line in LINES for extras in re.findall(r"-e '\.\[([\w,]+)\]'", line)]
    extras = {extra for each in wanted for extra in each.split(",")}
    assert {"gpu", "deepspeed"} <= extras <= set(setup["options.extras_require"])


def test_wans_commands_read_what_the_readers_scale_says_and_nothing_else(library):
    """And by hand the same runs are made as by the sweep."""
    said, sweep = yaml.safe_load(MINE), load_sweep("ablation", "mine", library=library)
    found = []
    for words in commands():
        if words[2:3] == ["experiments"] and "mine" in words and words[3] not in TOOLS:
            chosen, late = experiments.parser(library).parse_known_args(words[3:])
            settings = parse_settings([*chosen.settings, *late])
            run = resolve(chosen.what, chosen.scale or "tiny", settings, library)
            found.append(run)
            assert run.name in sweep.runs or any(key.startswith("needs.") for key in settings)
    assert {run.verb for run in found} == set(VERBS)
    everything = [each for run in [*found, *sweep.runs.values()] for each in run.closure().values()]
    folders = {
        where for run in everything for where in run.recipe["needs"].values() if "/" in where
    }
    wanted = {said[key] for key in ("wan", "wan_score", "openvid", "vidprom", "vbench")}
    assert {where for where in folders if not re.fullmatch(r"\./[A-Z]+", where)} == wanted


def devices():
    """What is run on several devices or trained, as the words behind the module."""
    for words in commands():
        if words[2:4] == ["experiments", "fit"]:
            yield words[3:]
    for _, line in LINES:
        if launched := LAUNCHED.fullmatch(line):
            yield shlex.split(launched[1])[1:]


@pytest.mark.parametrize("words", devices(), ids=" ".join)
def test_a_run_on_devices_would_begin(words, library):
    """Its settings go together, as far as that can be said without files and devices."""
    chosen, late = experiments.parser(Library()).parse_known_args(words)
    if not chosen.what.startswith("runs/"):
        settings = parse_settings([*chosen.settings, *late])
        run = resolve(chosen.what, chosen.scale or "tiny", settings, library)
        verb_module(run.verb).check(run.recipe)


def test_both_launchers_are_shown():
    launchers = {line.split()[0] for _, line in LINES if LAUNCHED.fullmatch(line)}
    assert launchers == {"srun", "torchrun"}


@pytest.mark.parametrize(("page", "path"), sorted(set(paths())))
def test_a_path_leads_somewhere(page, path):
    assert any(ROOT.glob(path)), f"{page} names {path}"


def test_a_test_that_is_named_is_there():
    defined = "".join(file.read_text() for file in (ROOT / "tests").glob("test_*.py"))
    named = {code for _, code in INLINE if re.fullmatch(r"test_\w+", code)}
    assert named and [name for name in sorted(named) if f"def {name}(" not in defined] == []


def slugs(text):
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links():
    for page, text in PROSE.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not target.startswith("https://"):
                yield page, target


@pytest.mark.parametrize(("page", "target"), sorted(set(links())))
def test_a_link_leads_somewhere(page, target):
    path, _, anchor = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists(), f"{page} links to {target}"
    assert not anchor or anchor in slugs(file.read_text()), f"{page} links to {target}"


def tables():
    """Every table as its lines, with the page that holds it."""
    for page, text in PROSE.items():
        for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
            yield page, table.splitlines()


@pytest.mark.parametrize(("page", "lines"), tables())
def test_a_table_has_a_head_and_as_many_cells_in_each_row(page, lines):
    assert re.fullmatch(r"\|(?::?-+:?\|)+", lines[1]), f"{page}: {lines[0]}"
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {lines[1].count("|")}


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_readmes_stages_are_all_there_are_in_stages_2_and_3():
    named = [name for name in recipes(verb="fit") if name.startswith(("stage2_", "stage3_"))]
    classes = {load_recipe(Library().recipes, name)["stage"]["class"] for name in named}
    files = {f"{stages()[name].rpartition('.')[2]}.py" for name in classes}
    assert sorted(file for file in files if file not in README) == []


def test_every_attention_kernel_is_named_where_it_is_chosen():
    texts = [file.read_text(encoding="utf-8") for file in Library().scales.glob("*.yaml")]
    lists = [found for text in texts for found in re.findall(r"\n  attention: \w+  #(.*)", text)]
    assert lists
    for name in set(get_args(Backend)) - {"auto"}:
        assert f"``{name}``" in Launch.__doc__
        assert all(name in each for each in lists), name


def test_readmes_map_names_every_folder():
    folders = {
        f"{path.parent.relative_to(ROOT)}/"
        for package in PACKAGES
        for path in [*(ROOT / package).glob("*.*"), *(ROOT / package).glob("*/*.*")]
        if path.suffix in (".py", ".yaml")
    }
    assert sorted(folder for folder in folders if f"`{folder}`" not in README) == []


def test_readmes_totals_are_those_of_the_results():
    """Fifteen World Totals, turned: the rows of one page are the columns of the other."""

    def cells(page, first):
        table = next(lines for of, lines in tables() if of == page and lines[0].startswith(first))
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
        return rows[0], rows[2:]

    (_, *inits), rows = cells("README.md", "| steps | SF-ODE")
    short = {init: [row[1 + n] for row in rows] for n, init in enumerate(inits)}
    long = {init: [row[2] for row in cells("docs/results.md", "| steps |")[1] if row[1] == init]
            for init in inits}  # fmt: skip
    assert len(inits) == 5 and len(rows) == 3 and short == long


def test_the_verbs_are_those_there_are():
    assert f"`{' '.join(VERBS)}`" in README
