"""Binds a section of a recipe to the function or constructor that it configures.

The signature is the schema: jsonargparse checks types and ranges (`lightning_modules/ranges.py`)
and converts values (a list to a tuple, a string to a Path). What the recipe does not set must have
a default in the signature or be passed by the verb (``given``), such as a network that has been
built already.
"""

from __future__ import annotations

import copy
import inspect
import math
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser

from experiments.runs.config import check_sections, nearest
from lightning_modules.ranges import is_restricted, range_in_words

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_NOUNS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_NOUNS |= {types.NoneType: "null", dict: "a section of settings"}


def bind(
    target: type | Callable[..., Any],
    settings: Mapping[str, Any],
    given: Collection[str] = (),
    section: str = "",
) -> dict[str, Any]:
    """Arguments for ``target`` out of ``settings``, checked and converted; nothing is called.

    ``given`` are arguments that the verb supplies itself; a recipe may not set them. ``section`` is
    the section of the recipe, for messages. Raises ValueError naming the key
    (and the nearest valid one) for an unknown key, a missing one, and a value of the wrong type or
    out of its range.
    """
    check_sections({section: settings}, [section], None)
    where = f"{section}." if section else ""
    title = f"{getattr(target, '__name__', target)}"
    parameters = settable(target, given)
    for key in settings:
        if key in given:
            raise ValueError(f"{where}{key}: {title} gets it from the run; remove it")
        if key not in parameters:
            raise ValueError(
                f"{where}{key}: {title} takes no such setting{nearest(key, parameters)}"
                f" (it takes: {', '.join(parameters) or 'none'})"
            )
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in settings:
            raise ValueError(f"{where}{name} is missing: {title} needs it and has no default")
    return {key: _convert(target, key, value, where) for key, value in settings.items()}


def settable(
    target: type | Callable[..., Any], given: Collection[str] = ()
) -> dict[str, inspect.Parameter]:
    """The parameters of ``target`` that a recipe may set."""
    return {name: each for name, each in parameters_of(target).items() if name not in given}


@lru_cache(maxsize=256)
def parameters_of(target: type | Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Keyword parameters of ``target``; a constructor's ``**rest`` means its base class's."""
    constructors = [target]
    if isinstance(target, type):
        constructors = [c for c in target.__mro__ if "__init__" in vars(c) and c is not object]
    parameters: dict[str, inspect.Parameter] = {}
    for constructor in constructors:
        signature = _signature(constructor).parameters
        parameters |= {
            name: parameter
            for name, parameter in signature.items()
            if parameter.kind in _NAMED and name not in parameters
        }
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in signature.values()):
            break
    return types.MappingProxyType(parameters)


def _signature(constructor: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(constructor, eval_str=True)
    except NameError:  # a name that is imported for type checkers only
        return inspect.signature(constructor)


def _convert(target: Any, key: str, value: Any, where: str) -> Any:
    """One value at a time, so that the message can name its key."""
    if parameters_of(target)[key].annotation == dict[str, Any] and isinstance(value, Mapping):
        return value  # a section that has a signature of its own
    try:
        own = {key: copy.deepcopy(value)}  # jsonargparse converts in place
        namespace = _parser(target, key).parse_object(own, defaults=False)
        return _plain(value, namespace.as_dict()[key])
    except (ArgumentError, TypeError, ValueError, OverflowError) as error:
        wanted = in_words(parameters_of(target)[key].annotation, value)
        raise ValueError(f"{where}{key}: {value!r} must be {wanted}") from error


def _plain(written: Any, value: Any) -> Any:
    """A converted value with plain numbers in it, which are saved and compared like any others.

    Raises ValueError for NaN and infinities, and where something else was written than the number
    that jsonargparse made of it: text such as ``"010"``, or 1e3 for a whole number.
    """
    if isinstance(value, (list, tuple)) and isinstance(written, (list, tuple)):
        return type(value)(_plain(*each) for each in zip(written, value, strict=True))
    if isinstance(value, dict) and isinstance(written, Mapping):
        return {key: _plain(written[key], each) for key, each in value.items()}
    if isinstance(value, (int, float)):
        plain = getattr(type(value), "_type", type(value))(value)
        made_up = isinstance(written, str) or (isinstance(written, float) and type(plain) is int)
        if made_up or not math.isfinite(plain):
            raise ValueError(f"{written!r} is not the number {plain}")
        return plain
    return value


def in_words(kind: Any, value: Any = None) -> str:
    """What a type of settings contains; no noun before the range of a number that only misses it.

    For example ``at least 0 and below 1``, ``a whole number at least 1, or null``.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is str and isinstance(value, (bool, int, float)):
        return "text; put it in quotes"
    if is_restricted(kind):
        number = isinstance(value, (kind._type, int)) and type(value) is not bool
        return ("" if number else f"{_NOUNS[kind._type]} ") + range_in_words(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (Union, types.UnionType):
        return ", or ".join(map(in_words, inner))
    if origin is tuple and inner[-1] is not ...:
        same = len(set(inner)) == 1
        each = in_words(inner[0]) if same else "; ".join(map(in_words, inner))
        return f"a list of {len(inner)}, each {each}"
    if origin in (list, tuple, Sequence):
        return f"a list, each {in_words(inner[0])}"
    return _NOUNS.get(origin or kind) or f"a valid {inspect.formatannotation(kind)}"


@lru_cache(maxsize=1024)
def _parser(target: Any, key: str) -> ArgumentParser:
    """Parser of one parameter; cached, since building one takes milliseconds."""
    parser = ArgumentParser(exit_on_error=False)
    others = {name for name in parameters_of(target) if name != key}
    add = parser.add_class_arguments if isinstance(target, type) else parser.add_function_arguments
    add(target, skip=others, fail_untyped=False)
    return parser
