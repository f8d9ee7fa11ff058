"""Trees of settings: merged, overridden and interpolated without ever accepting an unknown key.

A tree is a plain nested dict with OmegaConf interpolations as strings; a path is a dotted key such
as ``fit.lr``. Nothing here knows what the keys mean, apart from ``needs``, whose entries are edges
to other runs and are replaced as a whole.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from experiments.runs.interpolation import Intricate, follow

Tree = Mapping[str, Any]
_ENTRY = re.compile(r"\[|\.\d+(\.|$)")
_REFERENCE = re.compile(r"\$\{.*\}")


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings -> {dotted key: value}. A need is kept as one value, and so is a network that
    names its class, since the network that it replaces has other keys.
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        path = f"{prefix}{key}"
        whole = not isinstance(value, Mapping) or not value
        whole = whole or ("class" in value and path.endswith("network"))
        if whole or "recipe" in value or "folder" in value or path.startswith("needs."):
            flat[path] = value
        else:
            flat |= flatten(value, f"{path}.")
    return flat


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'few_steps'?``, or nothing when no known name is near."""
    known = list(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not match and "." not in name:  # compare the last part of dotted keys too
        leaves = {path.rpartition(".")[2]: path for path in known}
        match = [leaves[leaf] for leaf in difflib.get_close_matches(name, leaves, n=1, cutoff=0.75)]
    return f"; did you mean {match[0]!r}?" if match else ""


def override(
    scale: dict, own: dict, settings: dict, file: Path, scale_file: Path
) -> tuple[dict, dict]:
    """Copies of both trees with each setting applied to the layer that declares its key.

    The scale comes first: what a recipe fixes to a value of its own (``seed: 0``) stays, whatever
    the scale says. ``launch`` cannot change a result and is set wherever it is declared.
    """
    for path, value in settings.items():
        parts = path.split(".")
        in_scale, in_own = has(scale, parts), has(own, parts)
        if entry := _ENTRY.search(path):
            whole = path[: entry.start()]
            raise ValueError(
                f"{path}: an entry of a list is not set alone; write the whole list, such as"
                f" {whole}=[first, second]"
            )
        if parts[0] == "needs":
            own = own | {"needs": copy.deepcopy(own.get("needs") or {})}
            _override_need(own, parts, value, file)
            continue
        if not in_scale and not in_own:
            known = [*paths(own), *paths(scale)]
            raise ValueError(
                f"unknown key {path!r}: neither {file} nor {scale_file}.yaml has it"
                f"{nearest(path, known)}"
            )
        _check_kept(path, _at(scale if in_scale else own, parts), value)
        if in_scale:
            scale = _with(scale, parts, value)
        if in_own and (not in_scale or parts[0] == "launch"):
            own = _with(own, parts, value)
    return scale, own


def extend(tree: dict, changes: dict, file: Path, under: Path) -> dict:
    """A copy of the scale ``under`` with the overrides of ``file``.

    It may not add keys, except below ``launch.slurm``: resources of jobs of single recipes.
    """
    for path, value in flatten(changes).items():
        parts = path.split(".")
        if not has(tree, parts) and parts[:2] != ["launch", "slurm"]:
            hint = nearest(path, paths(tree))
            raise ValueError(
                f"{file}: unknown key {path!r}: {under}, which it extends, has none such{hint}"
            )
        if has(tree, parts):
            _check_kept(f"{file}: {path}", _at(tree, parts), value)
        tree = _with(tree, parts, value)
    return tree


def put(tree: dict, changes: dict) -> dict:
    """A copy of ``tree`` with ``changes`` put into it, section by section; keys may be new."""
    for path, value in flatten(changes).items():
        tree = _with(tree, path.split("."), value)
    return tree


def fixed(own: dict, scale: dict, settings: Iterable[str]) -> list[str]:
    """Those settings that change the scale but not this recipe, which fixes its own value."""
    paths_of = {path: path.split(".") for path in settings if not path.startswith("launch.")}
    return [
        path
        for path, parts in paths_of.items()
        if has(own, parts) and has(scale, parts) and not _is_reference(own[parts[0]], parts[0])
    ]


def check_sections(tree: Tree, keys: Iterable[str], file: Path | None, *above: str) -> None:
    """Refuse a value where a section of settings must be; a key may be left out.

    Raises ValueError naming the file and the key with the keys ``above`` it.
    """
    for key in keys:
        if key in tree and not isinstance(tree[key], dict):
            where = f"{file}: " if file else ""
            raise ValueError(_no_section(f"{where}{'.'.join([*above, key])}", tree[key]))


def _check_kept(path: str, before: Any, value: Any) -> None:
    """A section of settings is not replaced by a value; the description of a need may be."""
    section = isinstance(before, Mapping) and before and not {"recipe", "folder"} & set(before)
    if section and not isinstance(value, Mapping) and not _REFERENCE.fullmatch(str(value)):
        key = path.rpartition(": ")[2]  # without the file
        raise ValueError(f"{_no_section(path, value)}, such as {key}.{next(iter(before))}=...")


def _no_section(path: str, value: Any) -> str:
    return f"{path}: {value!r} is no section of settings; set the keys below it"


def _override_need(own: dict, parts: list[str], value: Any, file: Path) -> None:
    """``needs.role={recipe: ...}`` replaces an edge; ``needs.role.key=value`` passes a setting."""
    needs = own.get("needs") or {}
    if len(parts) < 2 or parts[1] not in needs:
        role = parts[1] if len(parts) > 1 else ""
        raise ValueError(
            f"{file} has no need {role!r}{nearest(role, needs)} (it has: {', '.join(needs)})"
        )
    if len(parts) == 2:
        whole = not isinstance(value, Mapping) or "recipe" in value or "folder" in value
        needs[parts[1]] = dict(value) if isinstance(value, Mapping) else value
        if not whole:
            raise ValueError(f"{file}: needs.{parts[1]} must name a recipe or a folder")
        return
    spec = needs[parts[1]]
    if not isinstance(spec, dict):
        raise ValueError(f"{file}: needs.{parts[1]} is {spec!r}; override it as a whole")
    spec[".".join(parts[2:])] = value


def interpolate(scale: dict, own: dict, file: Path) -> dict[str, Any]:
    """The keys that the recipe declares, every interpolation replaced by its value."""
    inherits = [key for key, value in own.items() if _is_reference(value, key)]
    merged = _merge(scale, {key: value for key, value in own.items() if key not in inherits})
    missing = [key for key in inherits if key not in scale]
    if missing:
        raise ValueError(f"{file}: {missing[0]}: the scale has no such key")
    wanted = [*own, *(["launch"] if "launch" in merged and "launch" not in own else [])]
    resolved: dict[str, Any] = {"recipe": file.stem}
    for key in wanted:
        try:
            value = _interpolated(merged, key)
        except OmegaConfBaseException as error:
            raise ValueError(f"{file}: {_unresolved(merged, key, error)}") from error
        resolved[key] = value
    return resolved


def _unresolved(tree: dict, key: str, error: OmegaConfBaseException) -> str:
    """The setting below ``key`` whose interpolation fails, and why."""
    path, value = key, tree[key]
    for inner, each in flatten({key: value}).items():
        try:
            _interpolated(tree | {key: each}, key)
        except OmegaConfBaseException as found:
            path, value, error = inner, each, found
            break
    reason = str(error).splitlines()[0]
    name = re.search(r"key '([^']+)'", reason)
    missing = isinstance(error, InterpolationKeyError) and name
    return f"{path}: {value!r}: {reason}{nearest(name[1], paths(tree)) if missing else ''}"


def _interpolated(tree: dict, key: str) -> Any:
    try:
        return follow(tree, tree[key])
    except Intricate:
        value = OmegaConf.create(tree)[key]
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
        return value


def _merge(under: dict, over: dict) -> dict:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(under.get(key), dict)
        merged[key] = _merge(under[key], value) if both else value
    return merged


def _is_reference(value: Any, key: str) -> bool:
    return isinstance(value, str) and value.replace(" ", "") == f"${{{key}}}"


def _at(tree: Any, parts: list[str]) -> Any:
    for part in parts:
        tree = tree[part]
    return tree


def has(tree: Any, parts: list[str]) -> bool:
    """Whether a tree has the key whose path has these parts."""
    for part in parts:
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def _with(tree: dict, parts: list[str], value: Any) -> dict:
    """The tree with another value at a path; only the path is copied."""
    first, *rest = parts
    under = tree.get(first)
    under = under if isinstance(under, dict) else {}
    return tree | {first: _with(under, rest, value) if rest else copy.deepcopy(value)}


def paths(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            found += paths(value, f"{prefix}{key}.")
    return found


def need_of(role: str, spec: Any, file: Path) -> tuple[str | None, Any]:
    """One resolved edge -> (recipe, settings for it), or (None, path or hub id)."""
    if isinstance(spec, str):
        spec = {"recipe": spec}
    if not isinstance(spec, dict) or ("recipe" in spec) == ("folder" in spec):
        raise ValueError(
            f"{file}: needs.{role} must name a recipe or a folder,"
            f" such as {{recipe: base}} or {{folder: /data/shards}}; it is {spec!r}"
        )
    kind = "recipe" if "recipe" in spec else "folder"
    if not isinstance(spec[kind], str):
        raise ValueError(
            f"{file}: needs.{role}: {spec[kind]!r} is not the text that names a {kind}; put it in"
            f" quotes where it is written, such as {{{kind}: '1.10'}}"
        )
    if kind == "recipe" and "/" in spec["recipe"]:
        raise ValueError(
            f"{file}: needs.{role}: {spec['recipe']!r} is no recipe's name; a path is given as"
            f" 'needs.{role}={{folder: {spec['recipe']}}}'"
        )
    if kind == "recipe":
        return spec["recipe"], {key: value for key, value in spec.items() if key != "recipe"}
    if len(spec) > 1:
        others = ", ".join(key for key in spec if key != "folder")
        raise ValueError(f"{file}: needs.{role}: a folder takes no settings ({others})")
    folder = os.path.expanduser(spec["folder"])
    return None, folder if "/" in folder else f"./{folder}"
