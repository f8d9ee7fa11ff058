"""The command line: ``python -m experiments {curate,fit,pairs,sample,score} ...``, and the tools
of ``experiments/verbs/tools.py``.

Only argparse and OmegaConf are imported before a verb starts, so help and mistakes are answered at
once.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.signals import end_at_second_stop, interrupt_on_stop
from experiments.launch.checks import problem
from experiments.launch.execute import execute
from experiments.launch.run_log import log_to_console
from experiments.runs.config import nearest
from experiments.runs.environment import settle
from experiments.runs.errors import INTERRUPTED, answered, fail
from experiments.runs.files import load_recipe
from experiments.runs.folder import Busy, RunFolder, home_path, runs_dir
from experiments.runs.recipe import RUN_NAME, Library, Resolver, Run, parse_settings, recipes
from experiments.runs.unchanged import changed_result
from experiments.verbs.tools import TOOLS

WHAT = {
    "curate": "make shards: accept, encode and store clips or prompts with a manifest",
    "fit": "train a stage and hand off its student",
    "pairs": "let a teacher generate the trajectories that the ODE variants regress on",
    "sample": "generate clips for a list of prompts",
    "score": "measure sampled (or real) clips",
}


@answered
def main(arguments: Sequence[str] | None = None, library: Library | None = None) -> int:
    """Run one verb; returns the exit status (0 done, 1 failed, 2 usage error, 130 interrupted)."""
    library = library or Library()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command_line = parser(library, arguments)
    chosen, late = command_line.parse_known_args(arguments)
    settable = chosen.verb in WHAT
    if wrong := [word for word in late if not settable or word.startswith("-") or "=" not in word]:
        command_line.error(f"unrecognized arguments: {' '.join(wrong)}")
    if not settable:
        return _use(chosen)
    chosen.settings += late  # argparse drops positional settings that follow an option
    folder = _folder(chosen, library)
    folders = folder.closure() if chosen.with_needs and not folder.done else [folder]
    if folder.done or chosen.with_needs:
        _check({each.name: each.recipe for each in folders if not each.done})
    elif missing := _missing(folder):
        print(missing, file=sys.stderr)
        return 2
    return _execute(folders)


def parser(library: Library, arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser; recipes and their keys are read only for the verb whose help is shown."""
    top = argparse.ArgumentParser(prog="python -m experiments", description="Execute one run.")
    names = ",".join([*WHAT, *TOOLS])
    verbs = top.add_subparsers(dest="verb", required=True, metavar=f"{{{names}}}")
    for verb, what in WHAT.items():
        wanted = verb in arguments and ("-h" in arguments or "--help" in arguments)
        sub = verbs.add_parser(
            verb,
            help=what,
            description=what[0].upper() + what[1:] + ".",
            epilog=_recipe_help(library, verb) if wanted else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("what", help="a recipe, a run folder, or a resolved recipe.yaml")
        sub.add_argument("settings", nargs="*", metavar="key=value", help="override a setting")
        sub.add_argument("--scale", help="one of experiments/scale (tiny)")
        sub.add_argument("--runs", help="where runs live (RUNS_DIR, else ./runs)")
        sub.add_argument("--with-needs", action="store_true", help="execute missing needs first")
    for name, tool in TOOLS.items():
        what = tool.what[0].upper() + tool.what[1:] + "."
        tool.declare(verbs.add_parser(name, help=tool.what, description=what))
    return top


def _recipe_help(library: Library, verb: str) -> str:
    """The recipes of one verb, each with the keys it declares."""
    scales = ", ".join(sorted(path.stem for path in library.scales.glob("*.yaml")))
    lines = [f"scales: {scales or 'none yet'}", "recipes, and the keys of each:"]
    for name in recipes(library, verb):
        own = load_recipe(library.recipes, name)
        keys = [key for key in own if key not in ("verb", "needs")]
        for section in ("stage", verb):
            if isinstance(own.get(section), dict):
                keys.remove(section)
                keys += [f"{section}.{key}" for key in own[section]]
        lines.append(f"  {name}: {', '.join(keys)}")
        if own.get("needs"):
            lines.append(f"    needs: {', '.join(own['needs'])}")
    lines.append("A key of the scale file is set the same way, and reaches every need as well.")
    return "\n".join(lines)


def _folder(chosen: argparse.Namespace, library: Library) -> RunFolder:
    """The run folder that the command line names, created with those of its needs if missing."""
    runs = runs_dir(chosen.runs)
    settings = parse_settings(chosen.settings)
    path = home_path(chosen.what)
    if path.suffix not in (".yaml", ".yml") and not (path / "recipe.yaml").is_file():
        if len(path.parts) > 1 or RUN_NAME.fullmatch(path.name):
            beside = [each.parent.name for each in path.parent.glob("*/recipe.yaml")]
            hint = nearest(path.name, beside)
            raise FileNotFoundError(f"{path}: there is no such run folder{hint}; see --runs")
        resolver = Resolver(chosen.scale or "tiny", library, runs)
        run = resolver.resolve(chosen.what, settings)
        for key in resolver.ineffective(chosen.what, settings):
            print(f"note: {chosen.what} fixes {key} itself; {key}=... changes only its needs")
        closure = run.closure().values()  # run last; not executed: not rewritten
        started = closure if chosen.with_needs else [run]
        _check({each.name: each.recipe for each in started if not RunFolder(runs / each.name).done})
        folder = [_written(each, runs, chosen.with_needs or each is run) for each in closure][-1]
    elif settings or chosen.scale:
        raise ValueError(
            f"{path} is resolved and takes no settings and no --scale; give the recipe's name"
            " instead"
        )
    elif path.is_dir():
        folder = RunFolder(path)
    else:
        folder = RunFolder.of_recipe(path, runs)
    verb = folder.recipe["verb"]
    if verb != chosen.verb:
        raise ValueError(f"{chosen.what} is for another verb: python -m experiments {verb} ...")
    return folder


def _written(run: Run, runs: Path, again: bool) -> RunFolder:
    """A run's folder. Raises ValueError if it is in use with other launch settings."""
    folder = RunFolder.create(run, runs, again)
    if again and not folder.done and folder.recipe.get("launch") != run.recipe["launch"]:
        raise ValueError(
            f"{folder.name} is in other hands ({folder.taken()}), with other settings under launch:"
            " wait for them, stop that process, or scancel the job"
        )
    return folder


def _missing(folder: RunFolder) -> str:
    """The missing needs of a run, and the commands that make them."""
    lines = []
    for role, need in folder.needs.items():
        if not need.done:
            again = f"{need.recipe['verb']} {shlex.quote(str(_shown(need.path)))}"
            lines.append(f"  {role}: {need.name} ({need.state()})")
            lines.append(f"    python -m experiments {again} --with-needs")
    if not lines:
        return ""
    lines.insert(0, f"error: {folder.name} needs runs that are not done:")
    return "\n".join([*lines, "or run all of them by adding --with-needs to your command"])


def _check(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Check the recipes of runs, by name, before a folder is made or the first of them starts.

    Raises:
        ValueError: what is wrong with each.
    """
    wrong = {name: text for name, recipe in found.items() if (text := problem(recipe))}
    if len(found) == 1 and wrong:
        raise ValueError(*wrong.values())
    if wrong:
        lines = [f"nothing was started, {len(wrong)} of {len(found)} recipes cannot run:"]
        raise ValueError(
            "\n".join([*lines, *(f"  {name}: {text}" for name, text in wrong.items())])
        )


def _shown(path: Path) -> Path:
    """The shortest form of a path, relative to the working directory if possible."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _use(chosen: argparse.Namespace) -> int:
    """Run a tool."""
    _speak()
    try:
        TOOLS[chosen.verb].run(chosen)
    except Exception as error:
        return fail(error, 1)
    return 0


def _speak() -> None:
    """Log to the console, and handle every signal to stop like Ctrl-C."""
    interrupt_on_stop()
    log_to_console()


def _execute(folders: Sequence[RunFolder]) -> int:
    _speak()
    for folder in folders:
        if folder.done:
            if changed := changed_result(folder):
                print(f"error: {folder.name} is done, but {changed}", file=sys.stderr)
                return 1
            print(f"{folder.name} is done: {_shown(folder.path)}")
            continue
        print(f"{folder.name} -> {_shown(folder.path)}", flush=True)
        try:
            execute(folder)
        except KeyboardInterrupt as stop:
            print(f"\n{stop}", file=sys.stderr)
            return INTERRUPTED
        except Busy as busy:
            print(f"error: {busy}; wait for it, or stop that process", file=sys.stderr)
            return 1
        except Exception as error:
            return fail(error, 1, _shown(folder.path / "log.txt"))
        print(f"{folder.name} is done")
    return 0


if __name__ == "__main__":
    settle()
    again = "ended by a second signal; the same command goes on from what was saved"
    end_at_second_stop(again, INTERRUPTED)
    sys.exit(main())
