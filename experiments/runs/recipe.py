"""Recipes: from a few lines of YAML to a named run.

A recipe names a verb, its settings, and the other runs it needs. It is merged from four layers,
later ones winning::

    experiments/scale/<scale>.yaml < experiments/recipes/<recipe>.yaml < sweep cell < command line

The scale tree holds values. Recipes are structure and interpolate it
(``${stages.causal_cd.steps}``; ``seed: ${seed}`` means "the scale's seed"). A recipe or a scale
that ``extends`` another holds only the differences (`files.py`). An override of a key of the scale
tree changes the scale, hence also every need behind the run; an override of a key of the recipe
changes this run alone, and reaches a need only where the recipe passes it on
(``needs: {student: {recipe: stage1, blocks: "${blocks}"}}``). Undeclared keys are refused.

A run is named ``<recipe>-<8 hex>``; the hash covers the resolved recipe with its needs replaced by
their names, or by the content of a path (`contents.py`), and leaves ``launch`` out, which holds
what cannot change a result.

Only OmegaConf is imported here: a sweep is planned and ``--help`` answered without torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.runs import contents
from experiments.runs.config import (
    check_sections,
    fixed,
    flatten,
    has,
    interpolate,
    nearest,
    need_of,
    override,
)
from experiments.runs.expected_cost import count_of, hinted, scale_of_hint
from experiments.runs.files import load_recipe, load_scale
from experiments.runs.yaml_reader import NAMES, parse_yaml

VERBS = ("curate", "fit", "pairs", "sample", "score")
RESERVED = ("verb", "seed", "needs", "launch", "stage", *VERBS)
RUN_NAME = re.compile(r"[A-Za-z0-9_.]+-[0-9a-f]{8}")
_INTERPOLATION = re.compile(r"\$\{\s*([A-Za-z_]\w*)")


@dataclass(frozen=True)
class Library:
    """Where recipes and scales are read from; tests bring their own."""

    recipes: Path = Path(__file__).parent.parent / "recipes"
    scales: Path = Path(__file__).parent.parent / "scale"


@dataclass(frozen=True, eq=False)
class Run:
    """A recipe with everything resolved.

    ``recipe`` is the plain tree that is written to the run folder; its needs are run names, or
    paths and hub ids (which always hold a "/"). Its ``contents``, if it has any, are the
    fingerprints of paths, by role. ``needs`` holds the runs among the needs by role.
    ``expected_s`` is the scale's hint of the run's cost in device-seconds
    (``launch: {cost_s: {<recipe>: 60}}``), in proportion to its steps, used to plan only.
    ``slurm`` is what a Slurm job for it asks for: ``launch: {slurm: {default: {...}, <recipe>:
    {...}}}``, the second over the first.
    """

    name: str
    recipe: dict[str, Any]
    needs: dict[str, Run]
    scale: str
    expected_s: float | None = None
    slurm: dict[str, Any] = field(default_factory=dict)

    @property
    def verb(self) -> str:
        return self.recipe["verb"]

    def closure(self) -> dict[str, Run]:
        """This run and all behind it, by name; a need always comes before what needs it."""
        found: dict[str, Run] = {}
        for need in self.needs.values():
            found |= need.closure()
        return found | {self.name: self}


def resolve(
    recipe: str,
    scale: str,
    settings: Mapping[str, Any] | None = None,
    library: Library | None = None,
) -> Run:
    """Resolve one recipe and, recursively, its needs. See Resolver for the errors raised."""
    return Resolver(scale, library).resolve(recipe, settings)


class Resolver:
    """Resolves many recipes of one scale; equal requests share one Run.

    ``runs`` is the folder of their runs, which remembers paths that are not there any more.

    Raises ValueError naming file, key and nearest valid name for anything a recipe or an override
    gets wrong, FileNotFoundError with the existing names for an unknown recipe or scale.
    """

    def __init__(
        self, scale: str, library: Library | None = None, runs: Path | None = None
    ) -> None:
        self.library = library or Library()
        self.scale = scale
        self._trees: dict[str, dict[str, Any]] = {}  # by content: equal ones are one object
        self._tree = self._one(load_scale(self.library.scales, scale))
        self._check_slurm()
        self._recipes: dict[str, dict[str, Any]] = {}
        self._memo: dict[tuple[str, int, str], Run] = {}
        self._counts: dict[str, int] = {}
        self._contents: dict[str, str | None] = {}  # by path: each is looked at once
        self._remembered = contents.remembered(runs) if runs else {}

    def resolve(self, recipe: str, settings: Mapping[str, Any] | None = None) -> Run:
        return self._resolve(recipe, self._tree, flatten(settings or {}), ())

    def ineffective(self, recipe: str, settings: Mapping[str, Any]) -> list[str]:
        """Settings of the scale that this recipe overrides with a value of its own."""
        return fixed(load_recipe(self.library.recipes, recipe), self._tree, flatten(settings))

    def has_sections_of(self, recipe: str) -> bool:
        """Whether the scale has the sections that this recipe reads, such as a stage's budget."""
        read = re.findall(r"\$\{([\w.]+)\.\w+\}", str(load_recipe(self.library.recipes, recipe)))
        return all(has(self._tree, path.split(".")) for path in read)

    def _resolve(self, name: str, scale: dict, settings: dict, above: tuple[str, ...]) -> Run:
        key = (name, id(scale), canonical(settings))
        if key in self._memo:
            return self._memo[key]
        file = self.library.recipes / f"{name}.yaml"
        if name in above:
            raise ValueError(f"{file}: needs go in a circle: {' -> '.join([*above, name])}")
        if name not in self._recipes:
            self._recipes[name] = load_recipe(self.library.recipes, name)
            _check_declared(self._recipes[name], scale, file)
        own, before = self._recipes[name], scale
        try:
            scale, own = override(scale, own, settings, file, self.library.scales / self.scale)
        except ValueError as error:
            asked_by = f" (asked for by the needs of {above[-1]!r})" if above else ""
            raise ValueError(f"{error}{asked_by}") from None
        if scale is not before:
            scale = self._one(scale)
        try:
            resolved = interpolate(scale, own, file)
        except ValueError as error:
            raise ValueError(f"{error}{self._scales_with(str(error))}") from None
        seed = resolved["seed"]
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise ValueError(f"{file}: seed: {seed!r} is not a number such as 0, 1, 2")
        resolved["needs"] = resolved.get("needs") or {}
        sections = ("needs", "launch", "stage", "network", resolved["verb"])
        check_sections(resolved, sections, file)
        launch = resolved.setdefault("launch", {})
        check_sections(launch, ("cost_s", "slurm"), file, "launch")
        costs, jobs = launch.pop("cost_s", {}), launch.pop("slurm", {})
        check_sections(jobs, ("default", name), file, "launch", "slurm")
        expected, slurm = hinted(costs, name, file), jobs.get("default", {}) | jobs.get(name, {})
        if expected and (usual := self._usual_count(name, file)):
            expected *= count_of(resolved) / usual
        launch["scale"] = self.scale
        # Overrides of the scale reach every need: `scale` contains them already.
        needs: dict[str, Run] = {}
        names: dict[str, str] = {}
        found: dict[str, str] = {}
        for role, spec in resolved.pop("needs").items():
            if spec is None:
                continue
            behind, rest = need_of(role, spec, file)
            if behind is None:
                names[role] = rest
                if content := self._content(rest):
                    names[role], found[role] = str(Path(rest).absolute()), content
                continue
            run = self._resolve(behind, scale, flatten(rest), (*above, name))
            needs[role], names[role] = run, run.name
        resolved["needs"] = names
        if found:
            resolved["contents"] = found
        run = Run(run_name(resolved), resolved, needs, self.scale, expected, slurm)
        self._memo[key] = run
        return run

    def _usual_count(self, name: str, file: Path) -> int:
        """`count_of` the recipe whose cost is hinted, without settings; 0 if unknown."""
        if name not in self._counts:
            scale = load_scale(
                self.library.scales, scale_of_hint(self.library.scales, self.scale, name)
            )
            try:
                self._counts[name] = count_of(interpolate(scale, self._recipes[name], file))
            except ValueError:  # it cannot be without settings
                self._counts[name] = 0
        return self._counts[name]

    def _content(self, path: str) -> str | None:
        if path not in self._contents:
            before = self._remembered.get(str(Path(path).absolute()))
            self._contents[path] = contents.fingerprint(path) or before
        return self._contents[path]

    def _scales_with(self, error: str) -> str:
        """Which scales have the key that an error misses, if this one has none of its section."""
        if (missing := re.search(r"key '([^'.]+)[^']*' not found", error)) is None:
            return ""
        files, section = sorted(self.library.scales.glob("*.yaml")), missing[1]
        found = [f.stem for f in files if section in load_scale(self.library.scales, f.stem)]
        if section in self._tree or not found:
            return ""
        return f" (scales that have {section!r}: {', '.join(found)}; this is {self.scale}: --scale)"

    def _check_slurm(self) -> None:
        """Keys of ``launch.slurm`` must be "default" or existing recipes."""
        file = self.library.scales / f"{self.scale}.yaml"
        check_sections(self._tree, ["launch"], file)
        launch = self._tree.get("launch", {})
        check_sections(launch, ["slurm"], file, "launch")
        known = ["default", *(path.stem for path in self.library.recipes.glob("*.yaml"))]
        for name in launch.get("slurm", {}):
            if name not in known:
                raise ValueError(
                    f"{file}: launch.slurm.{name}: there is no such recipe{nearest(name, known)}"
                )

    def _one(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The one object shared by all trees of this content."""
        return self._trees.setdefault(canonical(tree), tree)


def recipes(library: Library | None = None, verb: str | None = None) -> list[str]:
    """Names of all recipes, or of those that one verb runs."""
    folder = (library or Library()).recipes
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    return [name for name in names if verb in (None, load_recipe(folder, name).get("verb"))]


def run_name(resolved: Mapping[str, Any]) -> str:
    """``<recipe>-<8 hex>`` of a resolved recipe; ``launch`` does not count."""
    return f"{resolved['recipe']}-{config_hash(resolved)[:8]}"


def config_hash(resolved: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a resolved recipe without ``launch``.

    A path whose content is known counts as that content.
    """
    content = {k: value for k, value in resolved.items() if k not in ("launch", "contents")}
    if known := resolved.get("contents"):
        named = {role: f"content {digest}" for role, digest in known.items()}
        content["needs"] = content["needs"] | named
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def canonical(value: Any) -> str:
    """JSON that is equal for equal trees, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def parse_settings(words: Iterable[str]) -> dict[str, Any]:
    """``["blocks=framewise", "fit.lr=1e-3"]`` -> flat settings; values are read as YAML."""
    settings: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ValueError(f"{word!r}: a setting is written key=value, such as few_steps=2")
        value = parse_yaml(text, repr(word))
        is_name = key.rpartition(".")[2] in NAMES and isinstance(value, (bool, int, float))
        settings[key] = text.strip() if is_name else value
    return flatten(settings)


def _check_declared(own: dict, scale: dict, file: Path) -> None:
    """Refuse a recipe with keys that nothing reads; most are misspelt."""
    if own.get("verb") not in VERBS:
        raise ValueError(f"{file}: verb is {own.get('verb')!r}, must be one of {', '.join(VERBS)}")
    used = set(_INTERPOLATION.findall(canonical(own)))
    for key in own:
        if key not in RESERVED and key not in scale and key not in used:
            raise ValueError(
                f"{file}: nothing reads the key {key!r}{nearest(key, [*RESERVED, *scale])}"
                f" A recipe's own key must be used by it as ${{{key}}};"
                f" the others are {', '.join(RESERVED)} and those of the scale."
            )
    if "seed" not in own:
        raise ValueError(f"{file}: the key 'seed' is missing; write seed: ${{seed}}, or a number")
