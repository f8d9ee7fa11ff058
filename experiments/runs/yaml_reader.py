"""The one reader of YAML: recipes, scales, sweeps, tables, and values on the command line.

Scalars mean what YAML 1.2 says, and what is text stays text as it is written. A number is written
in one way only, in decimal digits without leading zeros (``8``, ``-0.5``, ``1e-4``, ``.inf``); the
numbers and booleans that YAML 1.1 sees in ``010``, ``1_000``, ``12:00:00`` and ``no`` are text. The
names of files and folders (`NAMES`) are text even where they look like numbers: ``{folder: 1.10}``
is not the folder ``1.1``. Anchors and ``<<`` work as ever. A key that is repeated is an error.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

NAMES = ("recipe", "folder", "extends", "from", "sweep", "scale")
"""Keys whose values name something; they are text."""
_TAG = "tag:yaml.org,2002:{}".format
_TEXT, _NUMBER = _TAG("str"), _TAG("int")
_SCALARS = {  # YAML 1.2's core schema without octal and hexadecimal numbers, and leading zeros
    _TAG("null"): r"~|null|Null|NULL|",
    _TAG("bool"): r"true|True|TRUE|false|False|FALSE",
    _NUMBER: r"[-+]?(0|[1-9][0-9]*)",
    _TAG("float"): r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    _TAG("merge"): r"<<",
}


class _Reader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}
    keys: tuple[str, ...] = (_TEXT, _TAG("merge"))

    def compose_scalar_node(self, anchor: str | None) -> ScalarNode:
        """Refuse tags, which would read a value as YAML 1.1 again; `!!str` is the usual text."""
        event = self.peek_event()
        if event.tag not in (None, "!", _TEXT):
            raise _error(f"the tag {event.tag!r}: write the value alone", event)
        return super().compose_scalar_node(anchor)

    def compose_mapping_node(self, anchor: str | None) -> MappingNode:
        """Refuse keys that are repeated or no text; the values of names are text."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, value in node.value:
            if key.tag not in self.keys:
                raise _error(f"the key {_shown(key)} is no text; quote it", key)
            if key.value in lines:
                first = lines[key.value]
                raise _error(f"the key {key.value!r} is repeated, see line {first}", key)
            lines[key.value] = key.start_mark.line + 1
            if key.value in NAMES and value.tag in (_NUMBER, _TAG("float"), _TAG("bool")):
                value.tag = _TEXT
        return node


class _Writer(yaml.SafeDumper):
    """Quotes every text that would be no text in YAML 1.1 or 1.2."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write what occurs twice twice."""
        return True


for _tag, _pattern in _SCALARS.items():
    for _class in (_Reader, _Writer):
        _class.add_implicit_resolver(_tag, re.compile(f"({_pattern})\\Z"), None)


class _TableReader(_Reader):
    keys = (*_Reader.keys, *_SCALARS)


def _shown(key: Node) -> str:
    return repr(key.value) if isinstance(key, ScalarNode) else f"({key.id})"


def _error(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def read_yaml(file: Path) -> Any:
    """The content of a file in UTF-8, or in UTF-16 with its mark.

    Raises ValueError with file, line and reason for what is not YAML, OSError for what is no file.
    """
    return _read(file.read_bytes(), str(file), _Reader)


def read_table(file: Path) -> Any:
    """As `read_yaml`, of a file whose keys may be numbers and booleans: values of labels."""
    return _read(file.read_bytes(), str(file), _TableReader)


def parse_yaml(text: str, name: str) -> Any:
    """The value that a text says. Raises ValueError with its name, the reason and the line."""
    return _read(text, name, _Reader)


def dump_yaml(tree: Any) -> str:
    """The text of a file that `read_yaml` reads as this tree, and YAML 1.1 reads alike."""
    return yaml.dump(tree, Dumper=_Writer, sort_keys=False, allow_unicode=True)


def _read(content: str | bytes, name: str, reader: type[_Reader]) -> Any:
    try:
        tree = yaml.load(content, reader)  # noqa: S506 - a SafeLoader with fewer types
        json.dumps(tree)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}, line {mark.line + 1}" if mark else name
        cure = "; indent with spaces" if "\\t" in error.problem else ""
        raise ValueError(f"{where}: not readable as YAML: {error.problem}{cure}") from error
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name}: not readable as YAML: {reason}; save it in UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{name}: not readable as YAML: nested too deeply, or an anchor contains itself"
        ) from error
    return tree
