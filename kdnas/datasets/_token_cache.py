"""Tokenised once: texts become token files that are memory-mapped ever after.

    <cache>/datasets/<key>/tokens.bin     uint16 or uint32 [S], the tokens of all texts end to end
                           segments.bin   uint8 [S], which of two texts each belongs to; pairs only
                           places.npy     int64 [N, 2], where each text starts and stops; of lists [N, K, 2]
                           labels.npy     int64 [N], classes or places, or float32 [N], numbers to be predicted
                           tokenizer/     as `AutoTokenizer.from_pretrained` opens it
                           meta.json      names, counts, lengths, fingerprint, notes

Of lists each text is a query with one of its K candidates. The key is a hash of the files, the tokenizer and how they
are read. N: training, stated validation, then test texts.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from kdnas.core.data import Samples
from kdnas.core.text import Mask, Padded, RankingData, Sequences, TextData
from kdnas.core.words import counted, escaped
from kdnas.datasets._entries import META, content_hash, kept_entry
from kdnas.datasets._inputs import Problems, carve_test, class_name_problems, name_of
from kdnas.datasets._labels import DeclaredLabels, by_name, label_mistake, numbered
from kdnas.datasets._tables import Found, Reading, Row, read_table
from kdnas.datasets._text_content import doubts
from kdnas.datasets._text_files import find_table_files
from kdnas.errors import DataError, Problem
from kdnas.registry import Section
from kdnas.tokenizing import Purpose, Tokenizer, token_dtype, train_tokenizer

Length = Annotated[int, Field(ge=4, le=1 << 20)]
Files = str | tuple[str, ...]
"""An option: a file or pattern, or several."""
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
LabelKind = Literal["classes", "values"]
"""An option: what the labels of texts are, classes or numbers to be predicted."""

_PUT = "the tables of a text data set (.csv, .tsv, .jsonl, .parquet, .arrow)"
_FORMAT = 3
_TEXTS = 1024
_USUAL_LENGTH = 512
_MULTIPLE = 8
_ROOM = 1.1
"""Times what a reading is predicted to need that must be free."""
_LISTED = 5


class TrainedTokenizer(Section):
    """A tokenizer that is trained on the training texts: `bytes` has one token a byte, `bpe` merges frequent ones."""

    type: Literal["bpe", "bytes"]
    vocabulary: Annotated[int, Field(ge=300, le=1 << 20)] = 8192
    """Tokens of `bpe`."""


TokenizerOption = str | TrainedTokenizer
"""`bpe`, `bytes`, either with options, or a Hugging Face folder under the data root."""


@dataclass(frozen=True)
class Source:
    """Texts as a data set's files give them. `rows` reads a split anew at each call."""

    name: str
    identity: Mapping[str, Any]
    rows: Callable[[Split, Found, Problems], Iterator[Row]]
    bytes: int
    """Of all files: what the tokens will need is predicted from it."""


@dataclass(frozen=True)
class Reader:
    """How texts become samples: by which tokenizer, how long, and which of them test."""

    tokenizer: TokenizerOption
    data_root: Path
    length: int | None = None
    test_fraction: float | None = None
    class_names: tuple[str, ...] | None = None
    labels: LabelKind | None = None
    """What labels are; None: numbers to be predicted where one has a fraction, else classes."""
    lists: bool = False
    """Whether a row is a query with candidates, and its label the place of the right one."""

    @property
    def samples(self) -> str:
        """What rows become."""
        return "lists" if self.lists else "texts"

    def identity(self) -> dict[str, Any]:
        """Return what decides the samples in addition to the files. Raises DataError where there is no tokenizer."""
        return {
            "tokenizer": tokenizer_identity(self.tokenizer, self.data_root),
            "length": self.length,
            "test_fraction": self.test_fraction,
            "class_names": self.class_names,
            **({} if self.labels is None else {"labels": self.labels}),
            **({"lists": True} if self.lists else {}),
        }


def table_source(data_root: Path, stated: Mapping[Split, Files | None], reading: Reading) -> Source:
    """Return the rows of the tables that are `stated` of each split. Raises DataError where one is not there."""
    files = {
        split: [] if names is None else find_table_files(data_root, names, _PUT) for split, names in stated.items()
    }

    def rows(split: Split, found: Found, problems: Problems) -> Iterator[Row]:
        for file in files[split]:
            yield from read_table(file, reading, found, problems)

    every = [file for split in files.values() for file in split]
    return Source(
        name_of(every[0].shown, data_root),
        {"files": {name: [file.identity for file in split] for name, split in files.items()}, "reading": str(reading)},
        rows,
        sum({file.path: file.size for file in every}.values()),
    )


def spelled_out(option: TokenizerOption) -> str | TrainedTokenizer:
    """Return the section that the bare names `bpe` and `bytes` are short for; a folder stays one."""
    return TrainedTokenizer(type=option) if option in ("bpe", "bytes") else option  # type: ignore[arg-type]


def tokenizer_identity(option: TokenizerOption, data_root: Path) -> Any:
    """Return what differs between tokenizers, JSON-serialisable. Raises DataError."""
    option = spelled_out(option)
    if isinstance(option, TrainedTokenizer):
        return option.model_dump()
    found = Tokenizer(data_root / option)
    return [found.fingerprint, found.vocabulary, found.positions, found.pad, found.end]


def opened_tokenizer(
    option: TokenizerOption, data_root: Path, folder: Path, texts: Callable[[], Iterator[str]], purpose: Purpose
) -> Tokenizer:
    """Return the tokenizer that the user names, kept in `folder`; one of kdnas's own is trained on `texts` there."""
    option = spelled_out(option)
    if isinstance(option, TrainedTokenizer):
        return train_tokenizer(option.type, texts(), folder, vocabulary=option.vocabulary, purpose=purpose)
    tokenizer = Tokenizer(data_root / option)
    tokenizer.save(folder)
    return tokenizer


def checked_length(stated: int | None, tokenizer: Tokenizer, longest: int) -> int:
    """Return the tokens of a sequence: as stated, else as many as the model takes, at most `longest`.

    Raises DataError where more are stated than the model takes.
    """
    positions = tokenizer.positions
    if stated is not None and positions is not None and stated > positions:
        raise DataError(Problem("data.length", f"{stated} tokens, and the model takes {positions}", "at most that"))
    return stated or min(positions or _USUAL_LENGTH, longest)


def cached_texts(source: Source, cache: Path, reader: Reader) -> TextData:
    """Return the labelled texts of `source` from the cache, tokenised first where they are not there.

    Raises DataError: what is wrong with the texts or labels, all of it; a cache that has no room.
    """
    identity = {"format": _FORMAT, "source": source.identity, "reader": reader.identity()}

    def make(work: Path) -> None:
        _Making(source, reader, work, cache).run()

    return kept_entry(source.name, cache, identity, make, open_texts)


class TokenWriter:
    """Appends tokens to a file, and predicts what the rest will need.

    Args:
        path: The file.
        dtype: Of a token.
        expected_bytes: Of all text that will come, as far as file sizes show.
        cache: The setting that decides the disk, for messages.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], expected_bytes: int, cache: Path):
        self._file = path.open("wb", buffering=1 << 20)
        self._folder, self._dtype, self._expected, self._cache = path.parent, dtype, expected_bytes, cache
        self._asked = False
        self.count = 0

    def extend(self, ids: Sequence[int]) -> None:
        """Append tokens."""
        self._file.write(np.asarray(ids, dtype=self._dtype).tobytes())
        self.count += len(ids)

    def check_room(self, text_bytes: int) -> None:
        """Ask once, after `text_bytes` of text, whether the disk has room for the rest. Raises DataError."""
        if self._asked or not text_bytes:
            return
        self._asked = True
        needed = self.count * self._dtype.itemsize * max(self._expected / text_bytes, 1.0)
        free = shutil.disk_usage(self._folder).free
        if needed * _ROOM > free:
            what = f"has {free / 1e6:,.0f} MB free, and the tokens need about {needed / 1e6:,.0f} MB"
            raise DataError(Problem(str(self._cache), what, "free space; KDNAS_CACHE names another folder"))

    def close(self) -> None:
        """Have everything on the disk."""
        self._file.close()


@dataclass
class _Making:
    """One reading of labelled texts into the folder `work`."""

    source: Source
    reader: Reader
    work: Path
    cache: Path
    found: Found = field(default_factory=Found)
    problems: Problems = field(default_factory=Problems)
    labels: DeclaredLabels = field(default_factory=DeclaredLabels)
    wheres: list[str] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    candidates: int = 0
    """Of the first list."""
    cut: int = 0
    longest: int = 0
    text_bytes: int = 0

    def run(self) -> None:
        """Read, tokenise and write everything. Raises DataError with all that is wrong."""
        tokenizer = opened_tokenizer(
            self.reader.tokenizer, self.reader.data_root, self.work / "tokenizer", self._training_texts, "labelled"
        )
        limit = checked_length(self.reader.length, tokenizer, _USUAL_LENGTH)
        dtype = token_dtype(tokenizer.vocabulary)
        writer = TokenWriter(self.work / "tokens.bin", dtype, self.source.bytes, self.cache)
        segments = TokenWriter(self.work / "segments.bin", np.dtype(np.uint8), 0, self.cache)
        counts: dict[str, int] = {}
        for split in SPLITS:
            before = len(self.wheres)
            rows = self.source.rows(split, self.found, self.problems)
            while chunk := list(islice(rows, _TEXTS)):
                self._tokenise(chunk, tokenizer, limit, writer, segments)
            counts[split] = len(self.wheres) - before
        writer.close()
        segments.close()
        if not self.problems.count and not counts["train"]:
            empty = f"; {counted(len(self.empty), 'text')} left out, which are empty" if self.empty else ""
            self.problems.add(self.source.name, f"there are no training texts{empty}")
        self.problems.raise_if_any()
        labels, classes, notes = self._understood()
        names = classes or ()
        order = np.arange(len(labels))
        if self.reader.test_fraction is not None:
            alike = np.zeros(counts["train"], dtype=np.int64) if classes is None else labels[: counts["train"]]
            tests = carve_test(alike, self.reader.test_fraction)
            order = np.concatenate([np.flatnonzero(~tests), order[counts["train"] :], np.flatnonzero(tests)])
            counts |= {"train": int((~tests).sum()), "test": int(tests.sum())}
        listed = (self.candidates,) if self.reader.lists else ()
        places = np.array(self.places, dtype=np.int64).reshape(-1, *listed, 2)[order]
        labels = labels[order]
        trained = counts["train"] + counts["validation"]
        self._check(labels, classes, counts, order)
        if (self.work / "segments.bin").stat().st_size == 0:
            (self.work / "segments.bin").unlink()
        np.save(self.work / "places.npy", places)
        np.save(self.work / "labels.npy", labels)
        length = limit if self.reader.length else min(limit, -(-self.longest // _MULTIPLE) * _MULTIPLE)
        meta = {
            "kind": self.reader.samples,
            "name": self.source.name,
            "class_names": list(names),
            "train_count": trained,
            "validation_count": counts["validation"],
            "tokens": writer.count,
            "dtype": dtype.name,
            "vocabulary": tokenizer.vocabulary,
            "pad": tokenizer.pad or 0,
            "length": length,
            "notes": [
                *self.found.notes,
                *notes,
                *self._notes(tokenizer, limit),
                *doubts([self.digests[place] for place in order], labels, names, counts, self.reader.samples),
            ],
        }
        files = [self.work / name for name in ("tokens.bin", "segments.bin", "places.npy", "labels.npy")]
        fingerprint = content_hash({**meta, "notes": None}, [file for file in files if file.is_file()])
        (self.work / META).write_text(json.dumps({**meta, "fingerprint": fingerprint}, indent=1))

    def _understood(self) -> tuple[np.ndarray, tuple[str, ...] | None, list[str]]:
        """Return the labels [N], the class names, None where they are no classes, and notes. Raises DataError."""
        values = _as_numbers(self.labels.values)
        if self.reader.lists:
            return self._of_lists(values), None, []
        if self._are_values(values):
            return self._values(values), None, []
        return self._numbered(values)

    def _check(
        self, labels: np.ndarray, classes: tuple[str, ...] | None, counts: Mapping[str, int], order: np.ndarray
    ) -> None:
        """Raise DataError where labels, rows in this `order`, do not pose a task."""
        name = self.source.name
        if classes is not None:
            _check_labels(name, labels, classes, counts, [self.wheres[place] for place in order])
            return
        if not self.reader.lists:
            _check_values(name, labels[: counts["train"]])
        if not counts["test"]:
            what = f"there are no test {self.reader.samples}"
            raise DataError(Problem(f"{name}: test", what, "`test` or `test_fraction`"))

    def _training_texts(self) -> Iterator[str]:
        for row in self.source.rows("train", Found(), Problems()):
            yield from (text for text in row.texts if text is not None)

    def _tokenise(
        self, chunk: list[Row], tokenizer: Tokenizer, limit: int, writer: TokenWriter, segments: TokenWriter
    ) -> None:
        whole = [row for row in chunk if self._is_whole(row)]
        read: list[Any] = [self._read_together(row) for row in whole]
        encoded = iter(tokenizer.encode(list(chain.from_iterable(read)), limit))
        for row, together in zip(whole, read, strict=True):
            texts = list(islice(encoded, len(together)))
            if not all(text.ids for text in texts):
                self.empty.append(row.where)
                continue
            for text in texts:
                self.places.append((writer.count, writer.count + len(text.ids)))
                writer.extend(text.ids)
                if len(row.texts) > 1:
                    segments.extend(text.segments)
                self.cut += text.cut
                self.longest = max(self.longest, len(text.ids))
            self.labels.append(row.label, Path(row.where.rpartition(": ")[0]))
            self.wheres.append(row.where)
            joined = "\0".join(map(str, row.texts)).encode("utf-8", "surrogatepass")
            self.text_bytes += len(joined)
            self.digests.append(hashlib.blake2b(joined, digest_size=8).digest())
        writer.check_room(self.text_bytes)

    def _is_whole(self, row: Row) -> bool:
        """Return whether a row makes a sample; why it does not is noted, or a problem."""
        if self.reader.lists and (wrong := self._wrong_list(row.texts)):
            self.problems.add(row.where, *wrong)
        elif None in row.texts:
            self.empty.append(row.where)
        elif row.label is None or isinstance(row.label, list | dict):
            self.problems.add(row.where, "has no label" if row.label is None else "its label is no single value")
        else:
            return True
        return False

    def _wrong_list(self, texts: Sequence[str | None]) -> tuple[str, str] | None:
        """Return (what is wrong with a query and its candidates, what is allowed), or None."""
        query, *candidates = texts
        self.candidates = self.candidates or len(candidates)
        if query is None:
            return "its query is empty", "a text"
        if len(candidates) < 2:
            return f"has {counted(len(candidates), 'candidate')}, and there is nothing to rank", "two or more"
        if len(candidates) != self.candidates:
            return f"has {len(candidates)} candidates, the first list {self.candidates}", "as many in every list"
        if None in candidates:
            return f"its candidate {candidates.index(None)}, counted from 0, is empty", "a text"
        return None

    def _read_together(self, row: Row) -> Sequence[Any]:
        """Return what of a row the tokenizer reads at a time: its text, its two, or the query with each candidate."""
        if self.reader.lists:
            return [(row.texts[0], candidate) for candidate in row.texts[1:]]
        return [row.texts if len(row.texts) == 2 else row.texts[0]]

    def _of_lists(self, values: Sequence[Any]) -> np.ndarray:
        """Return the places of the right candidates as int64 [N]. Raises DataError naming those that are none."""
        whole = [label for label in values if isinstance(label, int)]
        from_one = len(whole) == len(values) and min(whole) == 1 and max(whole) == self.candidates
        for label, where in zip(values, self.wheres, strict=True):
            if not isinstance(label, int) or not 0 <= label < self.candidates:
                hint = " (they seem to count from 1, and count from 0 here)" if from_one else ""
                what = f"its label is {escaped(str(label)[:40])}, the place of none of its candidates{hint}"
                self.problems.add(where, what, f"0 to {self.candidates - 1}")
        self.problems.raise_if_any()
        return np.array(values, dtype=np.int64)

    def _are_values(self, values: Sequence[Any]) -> bool:
        """Return whether labels are numbers to be predicted. Raises DataError where they cannot be."""
        stated, names = self.reader.labels, self.reader.class_names
        if stated == "values" and names is not None:
            raise DataError(Problem("class_names", "labels are values, which have no names", "labels: classes"))
        if stated is not None:
            return stated == "values"
        declared = any(names_of_file is not None for names_of_file in self.found.declared.values())
        fractions = any(isinstance(value, float) for value in values)
        return fractions and not declared and names is None

    def _values(self, values: Sequence[Any]) -> np.ndarray:
        """Return labels that are numbers as float32 [N]. Raises DataError naming those that are none."""
        for label, where in zip(values, self.wheres, strict=True):
            if isinstance(label, bool) or not isinstance(label, int | float) or not math.isfinite(label):
                shown = escaped(str(label)[:40])
                self.problems.add(where, f"its label is {shown}, and labels are numbers to be predicted", "a number")
        self.problems.raise_if_any()
        return np.array(values, dtype=np.float32)

    def _numbered(self, values: list[Any]) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
        """Return labels as int64 [N], the class names, and notes. Raises DataError."""
        self.labels.declared, self.labels.values = self.found.declared, values
        for label, where, path in zip(values, self.wheres, self.labels.files, strict=True):
            if isinstance(label, float):
                what = f"its label is {label:g}: labels are classes here, and numbers with fractions are none"
                raise DataError(Problem(where, what, "texts or whole numbers, or data: {labels: values}"))
            if wrong := label_mistake(label, self.found.declared.get(path)):
                self.problems.add(where, *wrong)
        self.problems.raise_if_any()
        names, where = self.reader.class_names, f"{self.source.name}: labels"
        declared = any(names_of_file is not None for names_of_file in self.found.declared.values())
        if declared or names is not None or not all(isinstance(label, int) for label in values):
            return numbered(self.labels, names, where)
        numbers = sorted(set(values))  # such as stars from 1 to 5: each stands for a class of that name
        names = tuple(map(str, numbers))
        return by_name([str(label) for label in values], names, where), names, []

    def _notes(self, tokenizer: Tokenizer, limit: int) -> Iterator[str]:
        if self.empty:
            listed = ", ".join(self.empty[:_LISTED]) + (", ..." if len(self.empty) > _LISTED else "")
            yield f"{counted(len(self.empty), 'empty text')} left out: {listed}"
        if self.cut:
            read = "queries with a candidate" if self.reader.lists else "texts"
            yield f"{self.cut:,} of {len(self.places):,} {read} are longer than {limit} tokens: their ends are cut off"
        if tokenizer.pad is None:
            yield "the tokenizer names no pad token: token 0 stands where there is no text, and is masked"


_NUMBER = re.compile(r"[+-]?(((0|[1-9]\d*)([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?|nan|inf(inity)?)", re.ASCII | re.IGNORECASE)
"""A number as programs write one. With other zeros or signs, as 007 or 1_000, it is a name."""
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


def _as_numbers(values: list[Any]) -> list[Any]:
    """Return labels as numbers where all are, as in a csv file: whole ones as int, the others as float.

    A comma is a decimal one, unless all of them may be those of thousands, which stay names.
    """
    if not all(isinstance(value, str) and _NUMBER.fullmatch(value) for value in values):
        return values
    commas = [value for value in values if "," in value]
    if commas and (all(map(_THOUSANDS.fullmatch, commas)) or any("." in value for value in values)):
        return values
    numbers = [float(value.replace(",", ".")) for value in values]
    return [int(number) if number.is_integer() else number for number in numbers]


def _check_labels(
    name: str, labels: np.ndarray, names: Sequence[str], counts: Mapping[str, int], wheres: Sequence[str]
) -> None:
    """Raise DataError where labels do not pose a task, with everything that is wrong."""
    problems = class_name_problems(names, name)
    trained = counts["train"]
    outside = (labels < 0) | (labels >= len(names))
    if outside.any():
        shown = ", ".join(map(str, np.unique(labels[outside])[:_LISTED]))
        raise DataError(Problem(name, f"labels out of range: {shown}", f"0 to {len(names) - 1}"))
    if len(names) < 2:
        only = escaped(names[0]) if names else ""
        problems.append(Problem(name, f"there is only one class ({only})", "two or more classes"))
    learnt = np.bincount(labels[:trained], minlength=len(names))
    for number in np.flatnonzero(learnt == 0).tolist():
        elsewhere = np.flatnonzero(labels == number).tolist()
        first = (
            f": {counted(len(elsewhere), 'text')} of it, the first at {wheres[elsewhere[0]]}" if len(elsewhere) else ""
        )
        problems.append(Problem(f"{name}: train", f"no training text of class {escaped(names[number])!r}{first}"))
    if not counts["test"]:
        classes = f": {len(names):,} classes of {len(labels):,} texts"
        allowed = "`test`, a larger `test_fraction`, or labels: values where labels are numbers to be predicted"
        problems.append(Problem(f"{name}: test", f"there are no test texts{classes}", allowed))
    if problems:
        raise DataError(problems)


def _check_values(name: str, labels: np.ndarray) -> None:
    """Raise DataError where the training labels are numbers and do not pose a task."""
    if (labels == labels[0]).all():
        raise DataError(Problem(f"{name}: train", f"every label is {labels[0]:g}: nothing is there to predict"))


def mapped(path: Path, dtype: str, count: int) -> np.ndarray:
    """Return the array [count] in the file at `path` as a memory map. Raises ValueError where it is of another size."""
    kind = np.dtype(dtype)
    if path.stat().st_size != count * kind.itemsize:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, not {count * kind.itemsize}")
    return np.memmap(path, dtype=kind, mode="r", shape=(count,)) if count else np.empty(0, dtype=kind)


def open_texts(folder: Path) -> TextData | None:
    """Return the entry in `folder`; None where there is none or it is damaged."""
    try:
        meta = json.loads((folder / META).read_text())
        if meta.get("kind") not in ("texts", "lists"):
            return None
        tokens = mapped(folder / "tokens.bin", meta["dtype"], meta["tokens"])
        places = np.load(folder / "places.npy", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        train, length, pad = meta["train_count"], meta["length"], meta["pad"]
        starts, stops = places[..., 0], places[..., 1]
        whole = len(labels) == len(places) and 0 < train < len(labels) and (starts < stops).all()
        if not whole or starts.min() < 0 or stops.max() > len(tokens) or not (folder / "tokenizer").is_dir():
            return None
        pairs = (folder / "segments.bin").is_file()
        segments = mapped(folder / "segments.bin", "uint8", meta["tokens"]) if pairs else None

        def samples(part: slice) -> Samples:
            kept = Sequences(tokens, starts[part], stops[part])
            inputs: dict[str, Any] = {"tokens": Padded(kept, length, pad), "mask": Mask(kept, length)}
            if segments is not None:
                inputs["segments"] = Padded(Sequences(segments, starts[part], stops[part]), length)
            return Samples(inputs, labels[part])

        of_kind = RankingData if meta["kind"] == "lists" else TextData
        return of_kind(
            name=meta["name"],
            class_names=tuple(meta["class_names"]),
            train=samples(slice(0, train)),
            test=samples(slice(train, None)),
            fingerprint=meta["fingerprint"],
            notes=tuple(meta["notes"]),
            stated_validation=meta["validation_count"],
            tokenizer=folder / "tokenizer",
            vocabulary=meta["vocabulary"],
            length=length,
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
