"""Binds a section of a recipe to the function or constructor that it configures.

The signature is the schema: jsonargparse checks types and converts values (a list to a tuple, a
string to a Path). What the recipe does not set must have a default in the signature or be passed
by the verb (``given``), such as a network that has been built already.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from experiments.runs.config import nearest

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def bind(
    target: type | Callable[..., Any],
    settings: Mapping[str, Any],
    given: Collection[str] = (),
    section: str = "",
) -> dict[str, Any]:
    """Arguments for ``target`` out of ``settings``, checked and converted; nothing is called.

    ``given`` are arguments that the verb supplies itself; a recipe may not set them. ``section`` is
    the section of the recipe, for messages. Raises ValueError naming the key
    (and the nearest valid one) for an unknown key, a missing one, and a value of the wrong type.
    """
    where = f"{section}." if section else ""
    title = f"{getattr(target, '__name__', target)}"
    parameters = {
        name: parameter for name, parameter in parameters_of(target).items() if name not in given
    }
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


def parameters_of(target: type | Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Keyword parameters of ``target``; a constructor's ``**rest`` means its base class's."""
    constructors = [target]
    if isinstance(target, type):
        constructors = [c for c in target.__mro__ if "__init__" in vars(c) and c is not object]
    parameters: dict[str, inspect.Parameter] = {}
    for constructor in constructors:
        signature = inspect.signature(constructor).parameters
        parameters |= {
            name: parameter
            for name, parameter in signature.items()
            if parameter.kind in _NAMED and name not in parameters
        }
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in signature.values()):
            break
    return parameters


def _convert(target: Any, key: str, value: Any, where: str) -> Any:
    """One value at a time, so that the message can name its key."""
    try:
        namespace = _parser(target, key).parse_object({key: value}, defaults=False)
    except (ArgumentError, TypeError, ValueError) as error:
        annotation = parameters_of(target)[key].annotation
        wanted = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        raise ValueError(f"{where}{key}: {value!r} is not a valid {wanted}") from error
    return namespace.as_dict()[key]


@lru_cache(maxsize=1024)
def _parser(target: Any, key: str) -> ArgumentParser:
    """Parser of one parameter; cached, since building one takes milliseconds."""
    parser = ArgumentParser(exit_on_error=False)
    others = {name for name in parameters_of(target) if name != key}
    add = parser.add_class_arguments if isinstance(target, type) else parser.add_function_arguments
    add(target, skip=others, fail_untyped=False)
    return parser
