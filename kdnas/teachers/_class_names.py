"""Which of a teacher's classes is which of the data's: matched by name wherever both sides have names."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator
from safetensors import SafetensorError, safe_open

from kdnas.core.data import Data
from kdnas.errors import Problem, TeacherError
from kdnas.teachers._loading import read_weights

ClassNames = tuple[Annotated[str, BeforeValidator(lambda name: str(name) if type(name) is int else name)], ...] | None
"""An option: the names of the teacher's classes in its own order; None where the source may have them."""

_KEYS = ("class_names", "id2label", "label_names", "classes", "class_to_idx", "idx_to_class", "labels", "categories")
_INSIDE = ("meta", "metadata", "config", "hyper_parameters", "dataset_meta")
_SHOWN = 8


@dataclass(frozen=True)
class Naming:
    """What a teacher calls its classes, in its own order, and where that stands.

    `spellings` holds the names that each class goes by. `stated` is whether the study states them.
    """

    spellings: tuple[tuple[str, ...], ...]
    where: str
    stated: bool = False

    @classmethod
    def of(cls, names: Sequence[str | Sequence[str]], where: str, *, stated: bool = False) -> Naming:
        """Return the naming of a name, or several spellings, a class. "tench, Tinca tinca" has three spellings."""
        spelt = [(name, *_parts(name)) if isinstance(name, str) else tuple(name) for name in names]
        return cls(tuple(spelt), where, stated)

    @property
    def is_informative(self) -> bool:
        """Whether these are names: `LABEL_0` and the like are not."""
        return self.stated or not all(re.fullmatch(r"label[ _]?\d+", names[0].casefold()) for names in self.spellings)

    def name(self, index: int) -> str:
        """Return what class `index` is called first."""
        return self.spellings[index][0]


def naming_of(
    stated: Sequence[str] | None, *known: tuple[Sequence[str | Sequence[str]] | None, str], count: int | None = None
) -> Naming | None:
    """Return the names that the study states, else the first of the `known` ones, (names, where), that are `count`."""
    if stated is not None:
        return Naming.of(stated, "teacher.class_names", stated=True)
    for names, where in known:
        if names is not None and (count is None or len(names) == count):
            return Naming.of(names, where)
    return None


def class_order(naming: Naming | None, data: Data, count: int) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Return (the teacher's index of each class of the data, or None to leave them, notes).

    The teacher has `count` classes. Where names are matched, every class of the data must be found once; a teacher of
    more classes is cut down to the data's. Raises TeacherError naming what is not matched.
    """
    class_names = data.class_names
    if naming is not None and len(naming.spellings) != count:
        what = f"{len(naming.spellings)} names for a network of {count} classes"
        if naming.stated:
            raise TeacherError(Problem(naming.where, what, "one name a class, in the teacher's own order"))
        naming = None
    if naming is None or not naming.is_informative:
        if count != len(class_names):
            raise TeacherError(other_classes(count, data))
        return None, ()
    found = _matched(naming, class_names)
    missing = [name for name in class_names if name not in found]
    if len(missing) == 1 and count == len(class_names) and count > 2:
        # Everything else has its place, so that the last one has too.
        left = next(index for index in range(count) if index not in found.values())
        found[missing[0]] = left
        notes: tuple[str, ...] = (
            f"its class {naming.name(left)!r} is taken for {missing[0]!r}: all the others match by name",
        )
    elif missing and not found and not naming.stated and count == len(class_names):
        own = _shown([naming.name(index) for index in range(count)])
        return None, (f"its class names ({own}; {naming.where}) are not the data's: the data's order is assumed",)
    elif missing and not found and not naming.stated:
        raise TeacherError(other_classes(count, data))
    elif missing:
        raise TeacherError(_unmatched(naming, class_names, found, missing))
    else:
        notes = ()
    order = tuple(found[name] for name in class_names)
    if order == tuple(range(count)):
        return None, notes
    if count > len(class_names):
        return order, (f"of its {count:,} classes the data's {len(class_names)} are used, found by name", *notes)
    return order, ("its classes are put in the data's order by their names", *notes)


def names_near(path: Path) -> list[tuple[tuple[str, ...] | None, str]]:
    """Return the class names that a weights file carries and those of the config.json next to it, each with its place.

    Nothing that the file holds is run; a file that cannot be read has no names.
    """
    config = path.parent / "config.json"
    return [(_names_in(path), path.name), (_names_in(config), config.name)]


def names_on(network: Any) -> tuple[tuple[str, ...] | None, str]:
    """Return the class names that a module carries as an attribute, or that of its `config`, and where they stand."""
    for holder, where in ((network, "the network's"), (getattr(network, "config", None), "the network's config's")):
        for key in _KEYS:
            if (names := _listed(getattr(holder, key, None))) is not None:
                return names, f"{where} {key}"
    return None, ""


def _names_in(path: Path) -> tuple[str, ...] | None:
    try:
        if path.suffix == ".json":
            held: Any = json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                held = {key: _parsed(text) for key, text in (file.metadata() or {}).items()}
        else:
            held = read_weights(path).content
    except (TeacherError, OSError, ValueError, SafetensorError):  # whoever needs the weights reports the fault
        return None
    if not isinstance(held, Mapping):
        return None
    for part in (held, *(held.get(key) for key in _INSIDE)):
        if not isinstance(part, Mapping):
            continue
        lowered = {str(name).casefold(): value for name, value in part.items()}
        for key in _KEYS:
            if (names := _listed(lowered.get(key))) is not None:
                return names
    return None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return [name.strip() for name in text.split(",")]


def _listed(value: Any) -> tuple[str, ...] | None:
    """Return the names in order: of a list, of {name: index} or of {index: name}; None where it is none of these."""
    if isinstance(value, Mapping) and value:
        pairs = list(value.items())
        if all(type(index) is int for _, index in pairs):
            pairs = [(index, name) for name, index in pairs]
        try:
            by_index = {int(index): name for index, name in pairs}
        except (TypeError, ValueError):
            return None
        value = [by_index[index] for index in sorted(by_index)] if set(by_index) == set(range(len(pairs))) else None
    if not isinstance(value, (list, tuple)) or len(value) < 2 or not all(type(name) in (str, int) for name in value):
        return None
    return tuple(str(name) for name in value)


def _matched(naming: Naming, class_names: Sequence[str]) -> dict[str, int]:
    """Return the teacher's index of each class of the data that is found; the closest spelling decides."""
    found: dict[str, int] = {}
    readings: tuple[Callable[[str], str], ...] = (str, _plain)
    for only_first in (True, False):
        for read in readings:
            places: dict[str, set[int]] = {}
            for index, spellings in enumerate(naming.spellings):
                for spelling in spellings[:1] if only_first else spellings:
                    places.setdefault(read(spelling), set()).add(index)
            for name in class_names:
                free = {index for index in places.get(read(name), ()) if index not in found.values()}
                alike = sum(read(other) == read(name) for other in class_names)
                if name not in found and len(free) == 1 and alike == 1:
                    found[name] = free.pop()
    return found


def _plain(name: str) -> str:
    """Return a name without what people write differently: case, underscores, hyphens, leading zeros."""
    words = re.split(r"[\s_\-./]+", unicodedata.normalize("NFKC", name).casefold().strip())
    return " ".join(str(int(word)) if word.isdecimal() else word for word in words)


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in name.split(",")) if "," in name else ()


def _unmatched(naming: Naming, class_names: Sequence[str], found: Mapping[str, int], missing: Sequence[str]) -> Problem:
    count = len(naming.spellings)
    unused = [naming.name(index) for index in range(count) if index not in found.values()]
    what = (
        f"the teacher's class names ({naming.where}) do not name every class of the data: "
        f"{len(missing)} of {len(class_names)} are not among them, or not once: {_shown(missing)}; "
        f"names that no class of the data has: {_shown(unused)}"
    )
    numbers = all(name.isdecimal() for name in class_names)
    remedy = "data.class_names, in the order of the labels, " if numbers else "teacher.class_names "
    return Problem("teacher.class_names", what, f"set {remedy}so that both sides use the same names")


def other_classes(count: int, data: Data) -> Problem:
    """Return the problem of a teacher of `count` classes that the data does not have."""
    what = f"has {count} classes, the data {data.name} has {data.task.outputs}"
    allowed = "a teacher trained for this data's classes"
    if count > data.task.outputs:
        allowed += "; or teacher.class_names, its names in its own order, among which the data's are found"
    return Problem("teacher", what, allowed)


def _shown(names: Sequence[str]) -> str:
    more = f", ... ({len(names)})" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more
