"""What a registry member is and takes, in words: shared by `kdnas list` and `kdnas init`."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any

from kdnas.plugins import short_name


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
    details: tuple[str, ...] = ()
    """The rest of its documentation, a paragraph each: what a function of the user's is called with and returns."""
    choices: tuple[Option, ...] = ()
    """Of a student family: the keys of a space's choices."""
    needs: tuple[str, ...] = ()
    """What it works with: of a loss what it reads of student and teacher, of an evaluator sections of the study."""


def describe(registry: Any, name: str) -> Entry:
    """Return member `name` of `registry` in words; for one that cannot be imported the reason."""
    try:
        member = registry.get(name)
        details, explained = _explanations(inspect.getdoc(member) or "")
        fields = registry.options(name).model_fields
        return Entry(
            short_name(name),
            registry.summary(name),
            tuple(_option(key, field, explained.get(key, "")) for key, field in fields.items()),
            details=details,
            choices=_choices(member),
            needs=tuple(sorted(getattr(member, "needs", ()))),
        )
    except Exception as error:  # one member that cannot be imported must not hide the others
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return Entry(short_name(name), "", unusable=f"cannot be used here: {why}")


_RAISES = re.compile(r"\s*\bRaises \w+Error\b[^.]*\.")
"""Parts of a docstring for callers from Python."""


def _explanations(documentation: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the paragraphs of a docstring after its first line, and its Args section by name."""
    paragraphs, explained, name, inside = [""], {}, "", False
    for line in documentation.split("\n")[1:]:
        if line.strip() in ("Args:", "Returns:", "Raises:"):
            inside = line.strip() == "Args:"
            name = ""
        elif inside and line.startswith(" "):
            if match := re.match(r" {1,4}(\w+): (.+)", line):
                name = match[1]
                explained[name] = match[2]
            elif name:
                explained[name] += f" {line.strip()}"
        elif line.strip():
            inside = False
            paragraphs[-1] = f"{paragraphs[-1]} {line.strip()}".strip()
        else:
            paragraphs.append("")
    return tuple(filter(None, (_RAISES.sub("", paragraph).strip() for paragraph in paragraphs))), explained


def _choices(member: Any) -> tuple[Option, ...]:
    """Return the choices of a student family; of anything else none."""
    stated = getattr(member, "stated_choices", None)
    return tuple(Option(key, allowed, default) for key, (allowed, default) in stated().items()) if stated else ()


def _option(name: str, field: Any, explained: str) -> Option:
    default = None if field.is_required() else _value_text(field.get_default(call_default_factory=True))
    return Option(name, type_text(field.annotation) + _bounds_text(field.metadata), default, explained)


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
