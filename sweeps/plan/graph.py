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
        scales: [tiny]                   # and those that extend it; left out: every scale
        runs:
          stage3: {recipe: score_real}
    table: ablation                      # how its results are shown: a folder of tables/, or the
                                         # keys themselves (report/layout.py); may be left out

A sweep of sweeps has, in the place of cells, the sweeps that run and are shown together; a part
without a scale has the one that the command gives::

    sweeps:
      - {sweep: theory_switching, scale: switching, labels: {world: switching}}

Every cell exists once per seed; the seed is a setting of the scale, so recipes that fix their own
seed (data, base model) are shared by all seeds.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.runs.config import check_sections, flatten, nearest
from experiments.runs.files import scale_and_bases
from experiments.runs.interpolation import Intricate, follow
from experiments.runs.recipe import Library, Resolver, Run, canonical
from experiments.runs.yaml_reader import read_yaml

FOLDER = Path(__file__).parent.parent
KEYS = ("title", "settings", "cells", "table", "sweeps")
_REFERENCES = re.compile(r"\$\{\s*([A-Za-z_]\w*)")
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
    bases: Set[str] = frozenset()
    """The scales that its own extends."""

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
    resolver_of = partial(Resolver, library=library, runs=runs)
    path = Path(sweep).expanduser()
    loaded = _load(path, scale, seeds, settings or {}, (), resolver_of)
    if not loaded.cells:
        groups = _read(_file(path)).get("cells", [])
        there = sorted({name for group in groups for name in group.get("scales", [])})
        raise ValueError(
            f"{_file(path)}: no cells at the scale {scale or 'none'}; give --scale"
            f" {' or '.join(there)} (make SCALE=...)"
        )
    return loaded


def _file(path: Path) -> Path:
    return path if path.suffix in (".yaml", ".yml") else FOLDER / f"{path}.yaml"


def _load(
    path: Path,
    scale: str,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    above: tuple[Path, ...],
    resolver_of: Callable[[str], Resolver],
) -> Sweep:
    path = _file(path)
    if path in above:
        raise ValueError(f"{path}: sweeps contain each other in a circle")
    tree = _read(path)
    title, table = tree.get("title", ""), tree.get("table") or {}
    given = [tree.get("settings", {}), settings]
    if "sweeps" in tree:
        parts = [{"scale": scale, **part} for part in tree["sweeps"]]
        cells = _joined(parts, seeds, given, (*above, path), resolver_of)
        scales = {part["scale"] for part in parts}
        shared = scale if scales == {scale} else ""
        bases = _at(resolver_of(scale), scale) - {scale} if shared else set()
        return Sweep(path.stem, shared, list(seeds), cells, title, table, bases)
    resolver = resolver_of(scale)
    for number, group in enumerate(tree["cells"]):
        known = sorted(file.stem for file in resolver.library.scales.glob("*.yaml"))
        if unknown := [name for name in group.get("scales", []) if name not in known]:
            hint = f"{nearest(str(unknown[0]), known)} (there are: {', '.join(known)})"
            raise ValueError(f"{path}: cells[{number}].scales: no scale {unknown[0]!r}{hint}")
    here = _at(resolver, scale)
    cells = [
        Cell(labels, _runs(resolver, path, group["runs"], labels, given))
        for seed in seeds
        for group in tree["cells"]
        if not here.isdisjoint(group.get("scales", here))
        for labels in _product(group.get("axes") or {}, seed)
    ]
    return Sweep(path.stem, scale, list(seeds), cells, title, table, here - {scale})


def _at(resolver: Resolver, scale: str) -> set[str]:
    """The scale and those that it extends: cells of one of them are its cells, too."""
    return set(scale_and_bases(resolver.library.scales, scale))


def _joined(
    parts: list[dict],
    seeds: Sequence[int],
    given: list[Mapping[str, Any]],
    above: tuple[Path, ...],
    resolver_of: Callable[[str], Resolver],
) -> list[Cell]:
    """The cells of several sweeps, each with the labels that tell its sweep from the others."""
    settings = flatten(given[0]) | flatten(given[1])
    return [
        Cell(part.get("labels", {}) | cell.labels, cell.runs)
        for part in parts
        for cell in _load(
            Path(part["sweep"]), part["scale"], seeds, settings, above, resolver_of
        ).cells
    ]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        hint = f"{nearest(path.stem, sweeps())} (there are: {', '.join(sweeps())})"
        raise FileNotFoundError(f"{path}: there is no such sweep{hint}")
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: a sweep is a mapping with 'cells', a list of axes and runs")
    _check_keys(path, "", tree, KEYS)
    if ("cells" in tree) == ("sweeps" in tree):
        raise ValueError(f"{path}: needs either 'cells' or 'sweeps'")
    check_sections(tree, ["settings"], path)
    if not isinstance(tree.get("title", ""), str):
        raise ValueError(f"{path}: title: {tree['title']!r} is no text; put it in quotes")
    if not isinstance(tree.get("table") or {}, (str, dict)):
        raise ValueError(f"{path}: table: {tree['table']!r} is neither a table's name nor its keys")
    if "cells" in tree:
        _check_cells(path, tree["cells"])
    else:
        _check_parts(path, tree["sweeps"])
    return tree


def _check_keys(path: Path, where: str, found: Any, known: Sequence[str]) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {where}{found!r} is no mapping with keys of {', '.join(known)}")
    for key in found:
        if key not in known:
            hint = nearest(key, known) or f" (known: {', '.join(known)})"
            raise ValueError(f"{path}: {where}unknown key {key!r}{hint}")


def _check_parts(path: Path, parts: Any) -> None:
    if not isinstance(parts, list) or not parts:
        raise ValueError(f"{path}: 'sweeps' must be a list of {{sweep: ..., scale: ...}}")
    for number, part in enumerate(parts):
        _check_keys(path, f"sweeps[{number}]: ", part, PART_KEYS)
        check_sections(part, ["labels"], path, f"sweeps[{number}]")
        if "sweep" not in part:
            raise ValueError(f"{path}: sweeps[{number}] must name a sweep")


def _check_cells(path: Path, groups: Any) -> None:
    if not isinstance(groups, list) or not groups:
        raise ValueError(f"{path}: 'cells' must be a list of {{axes: ..., runs: ...}}")
    for number, group in enumerate(groups):
        _check_keys(path, f"cells[{number}]: ", group, ("axes", "runs", "scales"))
        if not isinstance(group.get("runs"), dict) or not group["runs"]:
            raise ValueError(f"{path}: cells[{number}]: 'runs' must name at least one run")
        if not isinstance(group.get("scales", []), list):
            raise ValueError(f"{path}: cells[{number}].scales must be a list, such as [tiny]")
        axes = group.get("axes") or {}
        check_sections({"axes": axes}, ["axes"], path, f"cells[{number}]")
        used = set(_REFERENCES.findall(canonical(group["runs"])))
        for axis, values in axes.items():
            problem = _wrong_axis(axis, values)
            if not problem and len(values) > 1 and axis not in used and used <= {*axes, "seed"}:
                problem = f"no run uses ${{{axis}}}, so all its cells would be the same"
            if problem:
                raise ValueError(f"{path}: cells[{number}].axes.{axis}: {problem}")


def _wrong_axis(axis: str, values: Any) -> str:
    if axis == "seed":
        return "seeds are given when it is run"
    if not isinstance(values, list) or not values:
        return "must be a list of one value or more"
    (text, count), *_ = Counter(map(canonical, values)).most_common(1)
    return f"the value {text} is repeated" if count > 1 else ""


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
        if not isinstance(spec, dict) or not isinstance(spec.get("recipe"), str):
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
