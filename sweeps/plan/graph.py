"""From a sweep's YAML to the cells of its table and the graph of runs behind them.

A sweep declares its cells only; the runs behind them follow from the recipes' needs. The
format::

    title: The three-stage ablation
    settings: {}                         # for every run, e.g. {blocks: chunkwise}
    cells:
      - axes: {init: [causal_ode, causal_cd], few_steps: [4, 2, 1]}   # their product
        runs:                            # runs of a cell, by name
          stage3: {recipe: score_stage3, init: "${init}", few_steps: "${few_steps}"}
          stage2: {recipe: score_stage2, init: "${init}", few_steps: "${few_steps}"}
      - axes: {init: [ceiling]}
        scales: [tiny]                   # left out: at every scale
        runs:
          stage3: {recipe: score_real}
    table: ablation                      # how its results are shown: a folder of tables/, or the
                                         # keys themselves (report/layout.py); may be left out

A sweep of sweeps has, in the place of cells, the sweeps that run and are shown together::

    sweeps:
      - {sweep: theory_switching, scale: switching, labels: {world: switching}}

Every cell exists once per seed; the seed is a setting of the scale, so recipes that fix their own
seed (data, base model) are shared by all seeds.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from experiments.runs.config import flatten, nearest
from experiments.runs.interpolation import Intricate, follow
from experiments.runs.recipe import Library, Resolver, Run

FOLDER = Path(__file__).parent.parent
KEYS = ("title", "settings", "cells", "table", "sweeps")
PART_KEYS = ("sweep", "scale", "labels")


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its place (``labels``: the axes and the seed) and its runs by name."""

    labels: dict[str, Any]
    runs: dict[str, Run]


@dataclass(frozen=True)
class Sweep:
    """A sweep at one scale: its cells, and every run behind them, needs first."""

    name: str
    scale: str
    seeds: list[int]
    cells: list[Cell]
    title: str = ""
    table: str | dict[str, Any] = field(default_factory=dict)

    @cached_property
    def runs(self) -> dict[str, Run]:
        """All distinct runs by name; a need comes before what needs it."""
        found: dict[str, Run] = {}
        for cell in self.cells:
            for run in cell.runs.values():
                found |= {name: each for name, each in run.closure().items() if name not in found}
        return found

    def dependants(self, name: str) -> set[str]:
        """All runs that need ``name``, directly or through others."""
        found: set[str] = set()
        for run in self.runs.values():  # needs come first, so one pass is enough
            if any(need.name == name or need.name in found for need in run.needs.values()):
                found.add(run.name)
        return found


def sweeps() -> list[str]:
    """Names of the sweeps in this folder."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_sweep(
    sweep: str | Path,
    scale: str,
    seeds: Sequence[int] = (0,),
    library: Library | None = None,
    settings: Mapping[str, Any] | None = None,
    runs: Path | None = None,
) -> Sweep:
    """Expand a sweep: a name in this folder, or a path to a YAML file.

    ``settings`` override every cell's own; ``runs`` is where its runs live (`Resolver`). Raises
    FileNotFoundError and ValueError with file, cell and cure.
    """
    path = Path(sweep)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{sweep}.yaml"
    tree = _read(path)
    title, table = tree.get("title", ""), tree.get("table") or {}
    given = [tree.get("settings") or {}, settings or {}]
    if "sweeps" in tree:
        cells = _joined(tree["sweeps"], seeds, library, given, runs)
        return Sweep(path.stem, "", list(seeds), cells, title, table)
    resolver = Resolver(scale, library, runs)
    cells = [
        Cell(labels, _runs(resolver, path, group["runs"], labels, given))
        for seed in seeds
        for group in tree["cells"]
        if scale in group.get("scales", [scale])
        for labels in _product(group.get("axes") or {}, seed)
    ]
    return Sweep(path.stem, scale, list(seeds), cells, title, table)


def _joined(
    parts: list[dict],
    seeds: Sequence[int],
    library: Library | None,
    given: list[Mapping[str, Any]],
    runs: Path | None,
) -> list[Cell]:
    """The cells of several sweeps, each with the labels that tell its sweep from the others."""
    settings = flatten(given[0]) | flatten(given[1])
    return [
        Cell(part.get("labels", {}) | cell.labels, cell.runs)
        for part in parts
        for cell in load_sweep(part["sweep"], part["scale"], seeds, library, settings, runs).cells
    ]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        hint = f"{nearest(path.stem, sweeps())} (there are: {', '.join(sweeps())})"
        raise FileNotFoundError(f"{path}: there is no such sweep{hint}")
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: a sweep is a mapping with 'cells', a list of axes and runs")
    _check_keys(path, "", tree, KEYS)
    if ("cells" in tree) == ("sweeps" in tree):
        raise ValueError(f"{path}: needs either 'cells' or 'sweeps'")
    for number, part in enumerate(tree.get("sweeps") or []):
        _check_keys(path, f"sweeps[{number}]: ", part, PART_KEYS)
        if not {"sweep", "scale"} <= set(part):
            raise ValueError(f"{path}: sweeps[{number}] must name a sweep and its scale")
    if "cells" in tree:
        _check_cells(path, tree["cells"])
    return tree


def _check_keys(path: Path, where: str, found: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in found:
        if key not in known:
            hint = nearest(key, known) or f" (known: {', '.join(known)})"
            raise ValueError(f"{path}: {where}unknown key {key!r}{hint}")


def _check_cells(path: Path, groups: Any) -> None:
    if not isinstance(groups, list) or not groups:
        raise ValueError(f"{path}: 'cells' must be a list of {{axes: ..., runs: ...}}")
    for number, group in enumerate(groups):
        _check_keys(path, f"cells[{number}]: ", group, ("axes", "runs", "scales"))
        if not isinstance(group.get("runs"), dict) or not group["runs"]:
            raise ValueError(f"{path}: cells[{number}]: 'runs' must name at least one run")
        for axis, values in (group.get("axes") or {}).items():
            if not isinstance(values, list) or axis == "seed":
                hint = "seeds are given when it is run" if axis == "seed" else "must be a list"
                raise ValueError(f"{path}: cells[{number}].axes.{axis}: {hint}")


def _product(axes: Mapping[str, list], seed: int) -> list[dict[str, Any]]:
    return [
        dict(zip(axes, values, strict=True)) | {"seed": seed}
        for values in itertools.product(*axes.values())
    ]


def _runs(
    resolver: Resolver, path: Path, specs: dict, labels: dict, layers: list[Mapping[str, Any]]
) -> dict[str, Run]:
    """The runs of one cell, with the cell's labels filled in."""
    tree = {**labels, "runs": specs}
    try:
        filled = _filled(tree)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: cell {labels}: {reason} (axes: {list(labels)})") from error
    runs = {}
    for name, spec in filled.items():
        if not isinstance(spec, dict) or "recipe" not in spec:
            raise ValueError(f"{path}: runs.{name} must name a recipe, such as {{recipe: score}}")
        recipe = spec.pop("recipe")
        settings: dict[str, Any] = {"seed": labels["seed"]}
        for layer in (layers[0], spec, layers[1]):
            settings |= flatten(layer)
        try:
            runs[name] = resolver.resolve(recipe, settings)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{path}: cell {labels}, runs.{name}: {error}") from error
    return runs


def _filled(tree: dict[str, Any]) -> dict[str, Any]:
    try:
        return follow(tree, tree["runs"])
    except Intricate:
        return OmegaConf.to_container(OmegaConf.create(tree).runs, resolve=True)
