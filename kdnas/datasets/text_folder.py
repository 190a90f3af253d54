"""A folder, or archive, of class folders with one text a file: `train/<class>/*.txt`, `test/<class>/*.txt`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kdnas.core.text import TextData
from kdnas.datasets import DATASETS
from kdnas.datasets._archives import is_archive, members
from kdnas.datasets._inputs import Problems, TestFraction, file_identity, locate
from kdnas.datasets._tables import Found, Row
from kdnas.datasets._text_files import TextFile, checked_encoding, open_text
from kdnas.datasets._token_cache import Length, Reader, Source, Split, TokenizerOption, cached_texts
from kdnas.errors import DataError, Problem

_NAMES: dict[str, Split] = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_NAMES |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_LARGEST_TEXT = 1 << 30
_HELD_BYTES = 128 << 20
"""Archives up to this size are unpacked into memory once; larger ones once a split."""


@dataclass(frozen=True)
class _Text:
    split: Split
    label: str
    file: TextFile


@DATASETS.register
def text_folder(
    data_root: Path,
    cache: Path,
    *,
    path: str,
    tokenizer: TokenizerOption,
    test_fraction: TestFraction | None = None,
    class_names: tuple[str, ...] | None = None,
    length: Length | None = None,
    encoding: str | None = None,
    suffix: str = ".txt",
) -> TextData:
    """A folder (or .tar, .tar.gz, .zip) of texts, one a file: `train/<class>/*.txt`, `test/<class>/*.txt`.

    A folder `validation` (`valid`, `val`, `dev`) next to these holds the texts that students are scored on. Without a
    folder `train` the class folders lie in `path` itself, and `test_fraction` is asked for. Texts are tokenised once.

    Args:
        data_root: The folder that `path` and the tokenizer are relative to.
        cache: kdnas's cache folder.
        path: The folder or archive.
        tokenizer: The teacher's Hugging Face folder; or `bpe` or `bytes`, trained on the training texts.
        test_fraction: Share of every class of the training texts that makes the test split, where there is no `test`.
        class_names: The classes in their order, which read only these; None: all folders, sorted.
        length: Tokens that a text is cut at; None: the longest text, at most 512 and what the model takes.
        encoding: Of the characters; None: UTF-8, or the encoding that a byte order mark or all lines of a file show.
        suffix: What the names of texts end with.

    Raises DataError naming what cannot be read.
    """
    source = locate(data_root, path, f"class folders of {suffix} files")
    listed = list(_texts(source, suffix, class_names)) if source.is_dir() else []
    unpacked: list[_Text] = []

    def rows(split: Split, found: Found, problems: Problems) -> Iterator[Row]:
        if not listed and not unpacked and source.stat().st_size <= _HELD_BYTES:
            unpacked.extend(_texts(source, suffix, class_names))
        for text in listed or unpacked or _texts(source, suffix, class_names):
            if text.split != split:
                continue
            try:
                stream = open_text(text.file, checked_encoding(text.file, encoding))
            except DataError as error:
                for problem in error.problems:
                    problems.add(problem.where, problem.what, problem.allowed)
                continue
            with stream:
                content = stream.read().replace("\ufeff", "").strip()
            yield Row(f"{text.file.shown}: text", (content or None,), text.label)

    files = [text.file.path for text in listed] or [source]
    size = sum(file.stat().st_size for file in files)
    described = {
        "files": [file_identity(file) for file in files],
        "encoding": encoding,
        "suffix": suffix,
        "path": str(source),
    }
    reader = Reader(tokenizer, data_root, length, test_fraction, class_names)
    return cached_texts(Source(source.name, described, rows, size), cache, reader)


def _texts(source: Path, suffix: str, class_names: tuple[str, ...] | None) -> Iterator[_Text]:
    """Yield the texts of a folder in the order of their paths, or of an archive in its own. Raises DataError."""
    seen = False
    for parts, file in _files(source, suffix):
        if len(parts) < 2:
            continue
        stated = [place for place, part in enumerate(parts[:-2]) if part.lower() in _NAMES]
        split = _NAMES[parts[stated[0]].lower()] if stated else "train"
        label = parts[-2]
        if label.lower() in _NAMES and not stated:
            continue  # next to the class folders
        if class_names is None or label in class_names:
            seen = True
            yield _Text(split, label, file)
    if not seen:
        what = f"holds no class folders of {suffix} files"
        raise DataError(
            Problem(str(source), what, "train/<class>/*.txt and test/<class>/*.txt, or the option `suffix`")
        )


def _files(source: Path, suffix: str) -> Iterator[tuple[tuple[str, ...], TextFile]]:
    if source.is_dir():
        for path in sorted(source.rglob(f"*{suffix}")):
            parts = path.relative_to(source).parts
            if path.is_file() and not any(part.startswith(".") for part in parts):
                yield parts, TextFile(path)
    elif is_archive(source):
        for member in members(source, _LARGEST_TEXT):
            hidden = any(part.startswith((".", "__MACOSX")) for part in member.parts)
            if not member.is_folder and not hidden and PurePosixPath(member.path).name.endswith(suffix):
                yield member.parts, TextFile(source, member.path, member.read())
    else:
        raise DataError(Problem(str(source), "is neither a folder nor an archive", ".tar, .tar.gz, .tar.xz, .zip"))
