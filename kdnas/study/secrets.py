"""Settings that look like secrets: a study is written into run folders, exports and messages, so it may hold none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kdnas.errors import Problem

_NAME = re.compile(
    r"(^|[_.-])(password|passwd|passphrase|secret|secrets|api_?key|access_?key(_id)?|secret_?(access_?)?key|private_?key"
    r"|auth_?token|access_?token|session_?token|bearer(_?token)?|hf_?token|credentials?)$",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"://[^\s:/@]*:[^\s/@]+@")
_CHECKED = ("storage", "store")
"""Settings whose own checks name the place for their passwords."""
_ALLOWED = "nothing here: your code, or the program that it is for, reads it from its environment or a file of yours"


def secret_problems(data: Mapping[str, Any]) -> list[Problem]:
    """Return every setting of a study whose name or value is that of a secret; the secret itself is not printed."""
    return list(_found(data, ""))


def _found(value: Any, where: str) -> Iterator[Problem]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _found(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _found(inner, f"{where}.{place}")
    elif isinstance(value, str) and value and where not in _CHECKED:
        if _NAME.search(where):
            yield Problem(where, "is a secret by its name, and would be written into the run folder", _ALLOWED)
        elif _IN_URL.search(value):
            yield Problem(where, "is a URL with a password, which would be written into the run folder", _ALLOWED)
