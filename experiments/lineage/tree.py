"""A lineage as a tree of text, the result at its root."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

_WIDE = 1000  # of a file or a pipe: a line each
_INTERNAL = ("count", "shards", "version", "fields", "index_sha256", "kind", "negative_prompt")


def print_tree(
    what: str, facts: Mapping[str, Any], roots: Sequence[str], runs: Mapping[str, Mapping[str, Any]]
) -> None:
    """Print what a path holds and the runs behind it; a run met again is only named.

    Args:
        what, facts: of the subject.
        roots: names of the runs that made it.
        runs: as from ``ancestry.ancestry``.
    """
    tree = Tree(escape(_title(what, facts)), guide_style="dim")
    shown: set[str] = set()
    for name in roots:
        _add(tree, "made by" if what != "run" else "", name, runs, shown)
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=_WIDE)
    console.print(tree, overflow="fold")


def _title(what: str, facts: Mapping[str, Any]) -> str:
    plain = {**facts, **facts.get("info", {})}
    plain = {key: value for key, value in plain.items() if not isinstance(value, dict | list)}
    lines = [f"{key} {value}" for key, value in plain.items()]
    lines += ["  ".join(f"{k} {v}" for k, v in line.items()) for line in facts.get("values", [])]
    return "\n  ".join([what, *lines])


def _add(
    tree: Tree, role: str, name: str, runs: Mapping[str, Mapping[str, Any]], shown: set[str]
) -> None:
    run, title = runs[name], f"[bold]{escape(f'{role}: ' if role else '')}{escape(name)}[/]"
    if name in shown:
        tree.add(f"{title} (see above)")
        return
    shown.add(name)
    if run["state"] == "missing":
        tree.add(f"{title}: not there any more ({escape(run['folder'])})")
        return
    branch = tree.add("\n".join([title, *(escape(f"  {line}") for line in _lines(run))]))
    for need, where in run["needs"].items():
        if isinstance(where, str):
            _add(branch, need, where, runs, shown)
        else:
            content = f", content {where['content']}" if where["content"] else ""
            branch.add(escape(f"{need}: {where['path']}{content}, {where['state']}"))


def _lines(run: Mapping[str, Any]) -> list[str]:
    """The facts of one run, a line each."""
    versions = ", ".join(f"{name} {number}" for name, number in run.get("versions", {}).items())
    found = {
        "recipe": f"{run['recipe']} ({run['verb']}, scale {run['scale']}), {run['state']}",
        "changed": run["changed"],
        "seed": run["seed"],
        "code": run.get("code"),
        "device": f"{run['devices']} x {run.get('device', '?')}" if "devices" in run else None,
        "versions": versions,
        "cost": _cost(run),
        "data": _data(run["data"]),
        "folder": run["folder"],
    }
    return [f"{name:9}{value}" for name, value in found.items() if value not in (None, "")]


def _cost(run: Mapping[str, Any]) -> str:
    if "wall_s" not in run:
        return ""
    hours = run.get("device_s", 0.0) / 3600
    ended = time.strftime("%Y-%m-%d %H:%M", time.localtime(run["ended"]))
    memory = run.get("peak_memory_bytes", 0) / 2**20
    wall = timedelta(seconds=round(run["wall_s"]))
    return f"{wall} wall, {hours:.3g} device-hours, peak {memory:,.0f} MiB, ended {ended}"


def _data(manifest: Mapping[str, Any]) -> str:
    if not manifest:
        return ""
    about = {key: value for key, value in manifest.items() if isinstance(value, str | int | float)}
    more = ", ".join(f"{key} {value}" for key, value in about.items() if key not in _INTERNAL)
    return f"{manifest['count']} {manifest['kind']}, shards: {manifest['shards']}, {more}"
