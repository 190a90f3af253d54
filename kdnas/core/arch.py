"""Arch: one point of a search space, as plain frozen data."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Scalar = bool | int | float | str

_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def normalise_scalar(value: Scalar) -> Scalar:
    """Return `value` with one spelling a number: integral floats become ints (2.0 and 2 are the same choice)."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


@dataclass(frozen=True)
class Arch:
    """A student architecture: its family and the choices that are active in it, sorted by name.

    Build it with `Arch.of`; a student family's `canonical` decides which choices are active, so that two
    spellings of one network are equal and share an `arch_id`.
    """

    family: str
    items: tuple[tuple[str, Scalar], ...]

    @classmethod
    def of(cls, family: str, choices: Mapping[str, Scalar]) -> Arch:
        """Return the arch of `family` with these choices."""
        return cls(family, tuple((name, normalise_scalar(choices[name])) for name in sorted(choices)))

    @property
    def choices(self) -> dict[str, Scalar]:
        """The active choices by name."""
        return dict(self.items)

    @property
    def canonical_json(self) -> str:
        """The one JSON text of this arch: sorted keys, no spaces."""
        return self._json(self.family)

    @functools.cached_property
    def arch_id(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of `canonical_json`.

        The folder of a family of the user's own, which is named by its file, has no part in it.
        """
        return hashlib.sha256(self._json(self.family.rpartition("/./")[2]).encode()).hexdigest()[:12]

    def _json(self, family: str) -> str:
        return _JSON.encode({"family": family, "choices": self.choices})

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any]) -> Arch:
        """Return the arch that `canonical_json` describes. Raises ValueError on anything else."""
        record = json.loads(text) if isinstance(text, str) else text
        try:
            return cls.of(record["family"], record["choices"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an arch: {text!r}") from error
