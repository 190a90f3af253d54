"""YAML as kdnas writes it, plain data that YAML 1.1 and 1.2 read alike, and as it reads its own again.

PyYAML writes YAML 1.1, where `12e4` is a string; its 1.2 readers, kdnas's own among them, take it for a number. Strings
that either would take for something else are quoted, such as an `arch_id` of digits with one `e`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from kdnas.regular import regular

_NUMBER = r"[0-9][0-9_]*"
CORE_SCHEMA = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("int", rf"[-+]?(?:0x[0-9a-fA-F]+|0o[0-7]+|{_NUMBER})", "-+0123456789"),
    (
        "float",
        rf"[-+]?(?:(?:{_NUMBER}\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
)
"""YAML 1.2's plain scalars that are no strings: tag, pattern, and the characters that they begin with."""


def resolve_core_schema(kind: type[yaml.SafeLoader] | type[yaml.SafeDumper]) -> None:
    """Register the scalars of `CORE_SCHEMA` with a loader or dumper class."""
    for name, pattern, first in CORE_SCHEMA:
        kind.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(rf"^(?:{pattern})$"), list(first))


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper, which quotes what any reader would take for something else."""


resolve_core_schema(_Dumper)


def plain_of(text: str) -> Any:
    """Return the plain data that YAML or JSON spells. Raises ValueError, whatever is wrong with it."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_plain(path: Path) -> Any:
    """Return the plain data in a YAML or JSON file. Raises OSError and ValueError, whatever is wrong with it."""
    return plain_of(regular(path).read_text(encoding="utf-8"))


def dump_yaml(data: Any, *, compact: bool = False) -> str:
    """Return plain `data` (mappings, lists, text, numbers) as YAML; `compact` writes the innermost ones on one line."""
    style = None if compact else False
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=style)
