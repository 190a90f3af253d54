"""Class labels in columns of files: texts, or numbers for which each file may have the names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdnas.core.words import escaped
from kdnas.datasets._inputs import names_or_numbers
from kdnas.errors import DataError, Problem


@dataclass
class DeclaredLabels:
    """Labels in the order read, the file of each, and the class names in each file."""

    values: list[Any] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    declared: dict[Path, tuple[str, ...] | None] = field(default_factory=dict)

    def append(self, label: Any, path: Path) -> None:
        """Add a label, an integer or a text, of the file `path`."""
        self.values.append(label)
        self.files.append(path)


def label_mistake(label: Any, declared: Sequence[str] | None) -> tuple[str, str] | None:
    """Return (what is wrong with a label, what is allowed), or None. `declared` are its file's class names."""
    if label is None or not isinstance(label, int | str) or isinstance(label, bool):
        return f"its label is {label!r}", "an integer or a text"
    if declared is None or isinstance(label, str) or 0 <= label < len(declared):
        return None
    withheld = ", which stands for a label that is withheld" if label == -1 else ""
    return f"its label is {label}{withheld}; labels out of range", f"0 to {len(declared) - 1}, the file's class names"


def declared_names(metadata: dict[bytes, bytes], label_column: str) -> tuple[str, ...] | None:
    """Return the class names that Hugging Face's metadata give for the label column."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label_column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if isinstance(names, dict) and {str(label) for label in range(len(names))} == names.keys():
        names = [names[str(label)] for label in range(len(names))]
    return tuple(map(str, names)) if isinstance(names, list) else None


def numbered(
    rows: DeclaredLabels, class_names: tuple[str, ...] | None, where: str
) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Return labels as int64 [N], the class names, and notes. Raises DataError."""
    declaring = {path: names for path, names in rows.declared.items() if names is not None}
    if not declaring:
        return *_untold(rows.values, class_names, where), []
    for label, path in zip(rows.values, rows.files, strict=True):
        if isinstance(label, int) and path not in declaring:
            what = f"its labels are integers without class names, while {next(iter(declaring))} names its classes"
            raise DataError(Problem(str(path), what, "the same Hugging Face metadata in every file"))
    for path, names in declaring.items():
        doubles = [name for name, count in Counter(names).items() if count > 1]
        if doubles:
            raise DataError(Problem(str(path), f"its class names occur twice: {', '.join(doubles[:10])}"))
    every = tuple(dict.fromkeys(name for names in declaring.values() for name in names))
    differ = len(set(declaring.values())) > 1
    texts = [
        label if isinstance(label, str) else declaring[path][label]
        for label, path in zip(rows.values, rows.files, strict=True)
    ]
    notes = ["its files number the classes differently: labels are matched by their names"] if differ else []
    if class_names is None or set(class_names) & set(every):
        names = class_names or every
        return by_name(texts, names, where), names, notes
    if differ:
        what = "the files number their classes differently, and none of `class_names` is a name of theirs"
        raise DataError(Problem(where, what, ", ".join(every)))
    if len(class_names) != len(every):
        what = f"{len(class_names)} names for {len(every)} classes"
        raise DataError(Problem("class_names", what, ", ".join(every)))
    return by_name(texts, every, where), class_names, notes


def _untold(raw: list[Any], class_names: tuple[str, ...] | None, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels as int64 [N] and the class names, where no file has names."""
    if all(isinstance(label, int) for label in raw):
        labels = np.array(raw, dtype=np.int64)
        return labels, names_or_numbers(class_names, labels)
    if not all(isinstance(label, str) for label in raw):
        raise DataError(Problem(where, "mixes numbers and texts", "one of the two"))
    names = class_names or tuple(sorted(set(raw)))
    return by_name(raw, names, where), names


def by_name(texts: Sequence[str], names: Sequence[str], where: str) -> np.ndarray:
    """Return the place of every text among `names`, int64 [N]. Raises DataError naming those that are none."""
    unknown = sorted(set(texts) - set(names))
    if unknown:
        what = escaped(f"labels {', '.join(unknown[:10])} are no class")
        raise DataError(Problem(where, what, escaped(", ".join(names))))
    label_of = {name: label for label, name in enumerate(names)}
    return np.array([label_of[text] for text in texts], dtype=np.int64)
