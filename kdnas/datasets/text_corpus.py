"""Running text for language models: plain text, JSON lines, parquet or arrow files, in packed blocks of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from kdnas.core.text import CorpusData
from kdnas.core.words import counted
from kdnas.datasets import DATASETS
from kdnas.datasets._corpus_cache import BlockLength, BlockReader, Corpus, Piece, Share, cached_corpus
from kdnas.datasets._generated import Generated, Generation
from kdnas.datasets._inputs import Problems, name_of
from kdnas.datasets._tables import (
    COLUMNAR,
    OBJECTS,
    Found,
    arrow_batches,
    found_encoding,
    json_objects,
    whole_characters,
)
from kdnas.datasets._text_files import TextFile, find_table_files, open_text
from kdnas.datasets._token_cache import Split, TokenizerOption
from kdnas.errors import ConfigError, DataError, Problem
from kdnas.registry import Pattern

_PUT = "the texts of a language model (.txt, .jsonl, .parquet, .arrow)"
Files = str | tuple[str, ...]
_PIECE = 1 << 20
"""Characters of a document that are read at once."""
_ABSENT = object()
"""In the place of a field that a line of JSON does not have."""


@DATASETS.register
def text_corpus(
    data_root: Path,
    cache: Path,
    *,
    train: Files,
    test: Files | Share,
    tokenizer: TokenizerOption,
    validation: Files | Share | None = None,
    length: BlockLength | None = None,
    documents: Literal["files", "lines", "paragraphs"] = "files",
    begins: Pattern | None = None,
    text_column: str = "text",
    end: str | None = None,
    encoding: str | None = None,
    generate: str | Generation | None = None,
) -> CorpusData:
    """Running text, packed into blocks of tokens: plain text, or a document a row of .jsonl, .parquet or .arrow files.

    An end token closes each document. Splits are files, or shares of the training documents. Tokenised once.

    Args:
        data_root: The folder that files and tokenizer are relative to.
        cache: kdnas's cache folder.
        train: File, glob, folder that `save_to_disk` wrote for a split, or member of an archive; or several.
        test: The same for the test text, or a share of the training documents.
        tokenizer: The teacher's Hugging Face folder; or `bpe` or `bytes`, trained on the training text.
        validation: The same as `test`, for the text that students are scored on; None: a share of the blocks in a row.
        length: Tokens of a block. None: as many as the model of the tokenizer takes, at most 2,048.
        documents: What a document is in plain text: a file, a line, or lines up to a blank one.
        begins: In their place a regular expression: a line in which it is found begins a document, as `^= .* =$`.
        text_column: Of JSON lines, parquet and arrow files.
        end: The token that closes a document; None: the tokenizer's own.
        encoding: Of the characters; None: UTF-8, or the encoding that a byte order mark or all lines of a file show.
        generate: Train on texts that a language model writes, which continues the beginnings of the training documents
            (sequence-level distillation): its Hugging Face folder, or `{teacher: FOLDER, texts: 1000, temperature: 1}`.

    Raises DataError naming what cannot be read.
    """
    first = None if begins is None else re.compile(begins)
    stated: dict[Split, Files | float | None] = {"train": train, "validation": validation, "test": test}
    shares = _shares(stated)
    files = {
        split: find_table_files(data_root, names, _PUT)
        for split, names in stated.items()
        if names is not None and not isinstance(names, float)
    }

    def pieces(split: Split, found: Found, problems: Problems) -> Iterator[Piece]:
        if split == "train" and generated is not None:
            written = generated.texts(_beginnings(documents_of(split, found, problems)), described["files"])
            yield from (Piece(text, True) for text in written)
            found.notes |= dict.fromkeys(generated.notes)
        else:
            yield from documents_of(split, found, problems)

    def documents_of(split: Split, found: Found, problems: Problems) -> Iterator[Piece]:
        for file in (file.unpacked() for file in files.get(split, ())):
            if file.suffix in (*OBJECTS, *COLUMNAR):
                rows = _rows(file, text_column, encoding, found, problems)
                yield from (Piece(text, True) for text in rows)
            else:
                yield from _documents(file, documents, first, encoding, found)

    every = [file for split in files.values() for file in split]
    described: dict[str, Any] = {
        "files": {name: [file.identity for file in split] for name, split in files.items()},
        "documents": [documents, begins, text_column, encoding],
    }
    generated = _generated(generate, shares, data_root, cache)
    if generated is not None:
        described["generate"] = generated.identity()
    size = sum({file.path: file.size for file in every}.values())
    corpus = Corpus(name_of(every[0].shown, data_root), described, pieces, shares, size)
    return cached_corpus(corpus, cache, BlockReader(tokenizer, data_root, length, end))


def _shares(stated: Mapping[Split, Files | float | None]) -> dict[Split, float]:
    """Return the splits that are shares of the training documents. Raises ConfigError where they leave none."""
    shares = {split: part for split, part in stated.items() if isinstance(part, float)}
    if sum(shares.values()) >= 1:
        raise ConfigError(Problem("data", "validation and test are all of the documents", "shares that leave some"))
    return shares


def _generated(
    generate: str | Generation | None, shares: Mapping[Split, float], data_root: Path, cache: Path
) -> Generated | None:
    """Return the texts that the teacher is to write, where it is. Raises ConfigError."""
    if generate is None:
        return None
    if shares:
        what = f"{' and '.join(shares)} would be texts that the teacher writes"
        raise ConfigError(Problem("data.generate", what, "files"))
    settings = Generation(teacher=generate) if isinstance(generate, str) else generate
    return Generated(settings, data_root, cache)


def _beginnings(pieces: Iterator[Piece]) -> Iterator[str]:
    """Yield the first piece of every document."""
    begins = True
    for piece in pieces:
        if begins:
            yield piece.text
        begins = piece.ends


def _rows(file: TextFile, column: str, encoding: str | None, found: Found, problems: Problems) -> Iterator[str]:
    """Yield the text of each row, empty ones left out, which is noted. Adds to `problems` what is no text."""
    if file.suffix in COLUMNAR:
        names, _, _ = next(arrow_batches(file))
        if names.count(column) != 1:
            what = (
                f"has no column {column!r}" if column not in names else f"has {names.count(column)} called {column!r}"
            )
            raise DataError(Problem(str(file.shown), what, ", ".join(names)))
        cells = (
            (f"row {number}", cell)
            for number, cell in enumerate(
                cell for _, _, columns in arrow_batches(file, [column]) for cell in columns[column]
            )
        )
    else:
        objects = json_objects(file, encoding, found, problems)
        cells = ((f"line {number}", item.get(column, _ABSENT)) for number, item in objects)
    empty = 0
    for where, cell in cells:
        try:
            if cell is not None and not isinstance(cell, str):
                held = f"its {column} is {type(cell).__name__} {str(cell)[:40]}"
                raise ValueError(f"has no {column}" if cell is _ABSENT else held)
            text = whole_characters(cell or "").replace("\ufeff", "").replace("\r\n", "\n")
            empty += not text
            if text:
                yield text
        except ValueError as error:
            problems.add(f"{file.shown}: {where}", str(error), "a text")
    if empty:
        found.notes[f"{counted(empty, 'empty text')} of {file.shown} left out"] = None


def _documents(
    file: TextFile, kind: str, begins: re.Pattern[str] | None, encoding: str | None, found: Found
) -> Iterator[Piece]:
    """Yield the documents of a plain text, long ones in pieces that end with a line."""
    waiting: list[str] = []
    size, open_document = 0, False

    def taken(ends: bool) -> Iterator[Piece]:
        nonlocal waiting, size, open_document
        text = "".join(waiting)
        waiting, size = [], 0
        if text.strip() or (ends and open_document):
            yield Piece(text, ends)
            open_document = not ends

    with open_text(file, found_encoding(file, encoding, found)) as stream:
        for line in stream:
            line = line.replace("\ufeff", "").replace("\r\n", "\n")
            if begins is not None and begins.search(line.rstrip("\n")):
                yield from taken(ends=True)
            elif begins is None and kind == "lines":
                yield from (Piece(text, True) for text in (line.rstrip("\n"),) if text.strip())
                continue
            elif begins is None and kind == "paragraphs" and not line.strip():
                yield from taken(ends=True)
                continue
            elif size > _PIECE and not line[:1].isspace():
                yield from taken(ends=False)
            waiting.append(line)
            size += len(line)
        yield from taken(ends=True)
