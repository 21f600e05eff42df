"""The types of fields: checks a value, describes a type, reads and writes text, suggests names."""

import difflib
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

_MOST = 5  # names to suggest at once


def matches(value: Any, annotation: Any) -> bool:
    """Returns whether a value fits a type: a whole number fits `float`, `True` no number."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return any(value == a and type(value) is type(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(matches(value, a) for a in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(matches(v, arguments[0]) for v in value)
    if annotation is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is annotation


def describe(annotation: Any) -> str:
    """Returns the words for a type, such as `a whole number or none`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(repr(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments)
    if origin is tuple:
        return f"a tuple, each {describe(arguments[0])}"
    names = {bool: "true or false", str: "text", float: "a finite number", int: "a whole number"}
    return "none" if annotation is types.NoneType else names.get(annotation, repr(annotation))


def parse(text: str, annotation: Any) -> Any:
    """Returns the value of this type that `text` spells: `none`, `true`, tuples by comma.

    Raises:
        ValueError: if it spells none.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        if text in arguments:
            return text
        raise ValueError(text)
    if origin in (typing.Union, types.UnionType):
        if types.NoneType in arguments and text.lower() == "none":
            return None
        for argument in arguments:
            try:
                return parse(text, argument)
            except ValueError:
                pass
        raise ValueError(text)
    if origin is tuple:
        parts = [part.strip() for part in text.strip("()").split(",")]
        return tuple(parse(part, arguments[0]) for part in parts if part)
    if annotation is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if annotation is types.NoneType:
        raise ValueError(text)
    return annotation(text)


def spell(value: Any) -> str:
    """Returns the text that `parse` reads as this value."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(spell, value)) or "()"
    return str(value)


def suggest(value: str, known: Iterable[str]) -> str:
    """Returns a question with the names most like `value`, or all names if none is like it."""
    known = list(known)
    plain = value.lower().replace("-", "_")
    near = [name for name in known if name == plain]
    near = near or [name for name in known if plain and name.startswith(plain)]
    near = near or [name for name in known if plain.endswith(name)]
    if not 0 < len(near) <= _MOST:
        near = difflib.get_close_matches(plain, known, n=1, cutoff=0.75)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(known)}"
