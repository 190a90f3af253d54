"""What a user's own files are to a new study: which data set reads them, which teacher is opened from them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdnas.cli._study_template import IMAGES, OF_TEXTS
from kdnas.datasets import kind_of
from kdnas.errors import ConfigError, Problem
from kdnas.study.members import registry_of

AUTO = "auto"
_TABLES = (".csv", ".tsv", ".jsonl", ".arrow")
_TOKENS = (".bin", ".npy")
_ARCHIVES = (".tar", ".gz", ".tgz", ".xz", ".bz2", ".zip")
_LOOKED_AT = 2_000
"""So many entries of a folder decide what it holds."""
_SAVED = "state.json"
"""Stands in the folder that `save_to_disk` of Hugging Face's `datasets` writes for a split."""
_SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""What its folders of several splits are called."""
_TEACHERS = {
    "ForSequenceClassification": "sequence_classifier",
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
    "ForImageClassification": "huggingface",
}
"""By the end of the class that a Hugging Face configuration names."""


@dataclass(frozen=True)
class Chosen:
    """A member of a family for a new study, and the options that are known."""

    type: str
    options: Mapping[str, Any] = field(default_factory=dict)


def choose(data: str, teacher: str, root: Path) -> tuple[Chosen, Chosen]:
    """Return the data set and the teacher that `data` and `teacher` name: members, `auto`, or files under `root`.

    Raises ConfigError where one is neither.
    """
    own_teacher = _member("teachers", teacher) or _teacher_at(root, teacher)
    texts = next((work for work, kind in OF_TEXTS.items() if own_teacher and kind.teacher == own_teacher.type), "")
    own_data = _member("datasets", data) or _data_at(root, data, texts)
    if own_data is None or own_teacher is None:
        problems = [] if own_data else [_neither("data", "datasets", data, root)]
        raise ConfigError(problems + ([] if own_teacher else [_neither("teacher", "teachers", teacher, root)]))
    if data == AUTO:
        own_data = Chosen(OF_TEXTS.get(texts, IMAGES).data)
    if teacher == AUTO:
        own_teacher = Chosen(OF_TEXTS.get(kind_of(own_data.type).poses, IMAGES).teacher)
    return own_data, own_teacher


def _member(family: str, name: str) -> Chosen | None:
    return Chosen(name) if name == AUTO or name in registry_of(family).names() else None


def _neither(option: str, family: str, stated: str, root: Path) -> Problem:
    what = f"there is no {stated!r}, neither a name nor a file under the data root {root} that kdnas can read"
    return Problem(f"--{option}", what, ", ".join(registry_of(family).names()))


def _teacher_at(root: Path, stated: str) -> Chosen | None:
    """Return the teacher that a Hugging Face folder, or a file of weights, makes; None where it is neither."""
    path = root / stated
    if path.suffix in (".safetensors", ".pt", ".pth") and path.is_file():
        return Chosen("module", {"weights": stated})
    try:
        classes = json.loads((path / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return None
    found = (member for ending, member in _TEACHERS.items() if any(str(name).endswith(ending) for name in classes))
    member = next(found, None)
    return None if member is None else Chosen(member, {"model": stated})


def _data_at(root: Path, stated: str, texts: str) -> Chosen | None:
    """Return the data set that reads the file or folder; `texts` is the teacher's kind of work, where that is known."""
    path = root / stated
    if path.is_dir():
        return _folder(path, stated, texts)
    if not any(part.is_file() for part in (path, *path.parents)):  # a member of an archive lies "in" a file
        return None
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return Chosen("text_corpus", {"train": stated})
    if suffix in _TABLES or (suffix == ".parquet" and texts):
        return _rows({"train": stated}, texts, lists=_has_lists(path))
    if suffix in _TOKENS:
        return Chosen("token_files", {"train": stated})
    if suffix == ".npz":
        return Chosen("npz", {"path": stated})
    if suffix == ".parquet":
        return Chosen("parquet", {"train": stated})
    if suffix in _ARCHIVES:
        return Chosen("text_folder" if texts else "image_folder", {"path": stated})
    return None


def _rows(files: Mapping[str, str], texts: str, *, lists: bool = False) -> Chosen:
    """Return what reads tables, by their use: rows of running text are a corpus, others have labels, or are `lists`."""
    labelled = "text_lists" if lists else "text_table"
    return Chosen("text_corpus" if texts == "language_modelling" else labelled, files)


def _has_lists(path: Path) -> bool:
    """Return whether the first object of a .jsonl file has a list of texts in it, as candidates to rank are."""
    if path.suffix.lower() != ".jsonl":
        return False
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return False
    cells = first.values() if isinstance(first, dict) else ()
    return any(isinstance(cell, list) and len(cell) > 1 and all(isinstance(x, str) for x in cell) for cell in cells)


def _folder(path: Path, stated: str, texts: str) -> Chosen:
    if (path / _SAVED).is_file():
        return _rows({"train": stated}, texts)
    saved = {split.parent.name for split in path.glob(f"*/{_SAVED}")}
    if "train" in saved:
        there = {use: next((name for name in names if name in saved), None) for use, names in _SPLITS.items()}
        return _rows({use: f"{stated.rstrip('/')}/{name}" for use, name in there.items() if name}, texts)
    inside = [entry for entry in itertools.islice(path.rglob("*"), _LOOKED_AT) if entry.suffix.lower() == ".txt"]
    if not inside:
        return Chosen("image_folder", {"path": stated})
    if any(entry.parent == path for entry in inside):
        return Chosen("text_corpus", {"train": f"{stated.rstrip('/')}/*.txt"})
    return Chosen("text_folder", {"path": stated})
