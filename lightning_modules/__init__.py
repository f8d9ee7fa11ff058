"""The stages by the names that a recipe may write as ``stage.class``. No torch is imported.

A stage is a public class of a module in this folder, found by reading the file: nothing has to be
entered anywhere. A class of another package is named with its module, ``package.module.Class``.
"""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path

ALONE = {"WorldProbe": "experiments.worlds.digits.probe"}
"""Stages that train no video network, and their modules: one device trains them, whatever a launch
says.
"""


@cache
def stages() -> dict[str, str]:
    """Class name -> the module that holds it."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name] = f"{__name__}.{path.stem}"
    return found | ALONE


def stage(name: str) -> type:
    """The class of a stage; its module is imported.

    Raises:
        LookupError: there is none of that name.
    """
    package, _, own = str(name).rpartition(".")
    module = package or stages().get(own, "")
    try:
        return getattr(import_module(module), own)
    except (ValueError, ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name not in (module, package):
            raise  # what the module itself imports is missing
        raise LookupError(f"there is no stage {name!r}") from error
