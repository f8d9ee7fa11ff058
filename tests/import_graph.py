"""The import graph of a checkout in numbers: rooms, floors, arrows, and what points the wrong way.

    python tests/import_graph.py [ROOT]

A room is what lies directly in a package: a folder, or a module on its own. An arrow is an import
between two rooms, however often it occurs. Rooms that import each other, directly or not, form a
circle; an arrow is upward if a depth-first walk finds that it closes one. Floors: the rooms of the
longest chain of arrows, a circle counted as one room.
"""

import ast
import sys
from pathlib import Path

import networkx

PACKAGES = ("lightning_modules", "datamodules", "callbacks", "experiments", "sweeps")


def files(root):
    """All Python files of the packages, relative to the root."""
    found = (path for name in PACKAGES for path in (root / name).rglob("*.py"))
    return sorted(str(path.relative_to(root)) for path in found)


def imports(root, file):
    """Dotted names that a file imports, wherever in it."""
    package = file.split("/")[:-1]
    for node in ast.walk(ast.parse((root / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms(root, package):
    """The import graph of one package's rooms; `__init__` and `__main__` are the house itself."""
    graph = networkx.DiGraph()
    for file in files(root):
        parts = file.removesuffix(".py").split("/")
        if parts[0] != package or parts[1].startswith("__"):
            continue
        graph.add_node(parts[1])
        for name in imports(root, file):
            target = name.split(".")
            if target[0] == package and len(target) > 1 and target[1] != parts[1]:
                graph.add_edge(parts[1], target[1])
    return graph


def upward(graph):
    """Arrows that close a circle, as a depth-first walk meets them."""
    labelled = networkx.dfs_labeled_edges(graph)
    on_path, found = [], set()
    for start, end, kind in labelled:
        if kind == "forward":
            on_path.append(end)
        elif kind == "reverse":
            on_path.pop()
        elif end in on_path:
            found.add((start, end))
    return found


def circles(graph):
    """Sets of rooms that import each other, directly or through others."""
    return [each for each in networkx.strongly_connected_components(graph) if len(each) > 1]


def main(root):
    print(f"{'':18}rooms  floors  arrows  upward  circles  lines")
    for package in PACKAGES:
        graph = rooms(root, package)
        floors = networkx.dag_longest_path_length(networkx.condensation(graph)) + 1
        own = [file for file in files(root) if file.split("/")[0] == package]
        lines = sum(len((root / file).read_text().splitlines()) for file in own)
        print(
            f"{package:18}{len(graph):5}{floors:8}{graph.number_of_edges():8}"
            f"{len(upward(graph)):8}{len(circles(graph)):9}{lines:7}"
        )
        for circle in circles(graph):
            print(f"{'':18}circle: {', '.join(sorted(circle))}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve())
