"""What a registry member is and takes, in words: shared by `kdnas list` and `kdnas init`."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Option:
    """One option of a member, in words."""

    name: str
    type: str
    default: str | None
    """None: it must be given."""
    help: str = ""


@dataclass(frozen=True)
class Entry:
    """One member: its name, one line about it, its options, and why it cannot be used here (empty: it can)."""

    name: str
    summary: str
    options: tuple[Option, ...] = ()
    unusable: str = ""


def describe(registry: Any, name: str) -> Entry:
    """Return member `name` of `registry` in words; one that cannot be imported says why instead."""
    try:
        fields, documentation = registry.options(name).model_fields, inspect.getdoc(registry.get(name)) or ""
        return Entry(
            name, registry.summary(name), tuple(_option(key, field, documentation) for key, field in fields.items())
        )
    except Exception as error:  # one member that cannot be imported must not hide the others
        return Entry(
            name, "", unusable=f"cannot be used here: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        )


def _option(name: str, field: Any, documentation: str) -> Option:
    default = None if field.is_required() else _value_text(field.get_default(call_default_factory=True))
    bounds = _bounds_text(field.metadata)
    explained = re.search(rf"^\s+{name}: (.+)$", documentation, re.MULTILINE)  # a line of the Args section
    return Option(name, type_text(field.annotation) + bounds, default, explained[1] if explained else "")


def type_text(annotation: Any) -> str:
    """Return a type as a user reads it: `Literal["a", "b"]` is `a | b`, a float with gt=0 is `float > 0`."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (None, types.NoneType):
        return "none"
    if origin is Annotated:
        metadata = [item for mark in inner[1:] for item in getattr(mark, "metadata", [mark])]
        return type_text(inner[0]) + _bounds_text(metadata)
    if origin is typing.Literal:
        return " | ".join(_value_text(value) for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_text(part) for part in inner)
    name = getattr(origin or annotation, "__name__", str(annotation))
    name = {
        "str": "text",
        "bool": "true | false",
        "dict": "mapping",
        "Mapping": "mapping",
        "tuple": "list",
        "Sequence": "list",
    }.get(name, name)
    items = [type_text(part) for part in inner if part is not Ellipsis]
    return f"{name} of {', '.join(dict.fromkeys(items))}" if items and name == "list" else name


def _bounds_text(metadata: list[Any]) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [
        f"{sign} {getattr(item, key):g}" for item in metadata for key, sign in signs.items() if hasattr(item, key)
    ]
    return f" {' and '.join(bounds)}" if bounds else ""


def _value_text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value or '""'
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, default=str)
