"""Whether a value is of the type that a field of a config is annotated with, and words for what the type lets be."""

from __future__ import annotations

import dataclasses
import types
import typing
from numbers import Integral, Real
from typing import Any, Literal

from vitrail.errors import UsageError, did_you_mean


def hints(config_type: type) -> dict[str, Any]:
    """Return field -> type of a dataclass."""
    return typing.get_type_hints(config_type)


def require_fit(name: str, value: Any, hint: Any) -> None:
    """Raise :class:`UsageError` unless a value is of the type that the field ``name`` is annotated with."""
    if not fits(value, hint):
        choices = [choice for part in (hint, *typing.get_args(hint)) for choice in _choices(part)]
        near = did_you_mean(str(value), map(str, choices))
        raise UsageError(f"expected {name} to be {_in_words(hint)}, got {value!r}.{near}")
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            require_fit(f"{name}.{field.name}", getattr(value, field.name), hints(type(value))[field.name])


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type: a class, a Literal, a union or a tuple of such; a bool is no number."""
    parts = typing.get_args(hint)
    if _is_union(hint):
        return any(fits(value, part) for part in parts)
    if choices := _choices(hint):
        return any(value is choice or (type(value) is type(choice) and value == choice) for choice in choices)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        wanted = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(value) == len(wanted) and all(map(fits, value, wanted))
    number = {int: Integral, float: Real}.get(hint)
    return isinstance(value, hint) if number is None else isinstance(value, number) and not isinstance(value, bool)


def _choices(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _in_words(hint: Any) -> str:
    """Return what a type lets be: "a whole number", "'max' or 'avg'", "a list of numbers"."""
    parts = typing.get_args(hint)
    if _is_union(hint):
        return " or ".join(_in_words(part) for part in parts)
    if choices := _choices(hint):
        said = [repr(choice) for choice in choices]
        return " or ".join([", ".join(said[:-1]), said[-1]]) if len(said) > 1 else said[0]
    if typing.get_origin(hint) is tuple and parts[-1] is ...:
        each = "pairs of whole numbers" if typing.get_args(parts[0]) else f"{_in_words(parts[0]).split(' ', 1)[1]}s"
        return f"a list of {each}"
    if typing.get_origin(hint) is tuple:
        return f"a list of {len(parts)} values, each {_in_words(parts[0])}"
    named = {int: "a whole number", float: "a number", bool: "True or False", str: "a word", type(None): "None"}
    return named.get(hint) or f"a group of settings, such as {{{dataclasses.fields(hint)[0].name!r}: ...}}"
