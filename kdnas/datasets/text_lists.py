"""Tables with a query, its candidates and the place of the right one in each row: for ranking and multiple choice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from kdnas.core.text import RankingData
from kdnas.datasets import DATASETS
from kdnas.datasets._inputs import TestFraction
from kdnas.datasets._tables import Column, Reading
from kdnas.datasets._token_cache import Files, Length, Reader, TokenizerOption, cached_texts, table_source
from kdnas.errors import ConfigError

Columns = Column | tuple[Column, ...]


@DATASETS.register
def text_lists(
    data_root: Path,
    cache: Path,
    *,
    train: Files,
    tokenizer: TokenizerOption,
    validation: Files | None = None,
    test: Files | None = None,
    test_fraction: TestFraction | None = None,
    query_column: Column | None = None,
    candidates: Columns | None = None,
    label_column: Column | None = None,
    length: Length | None = None,
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None,
    encoding: str | None = None,
    header: bool | None = None,
    quoting: bool | None = None,
) -> RankingData:
    """Rows of a query, its candidates and a label, the place of the right one: files as `text_table` reads them.

    As many candidates in every row: in columns of their own, or in one that holds lists of texts (.jsonl, .parquet,
    .arrow). A network reads the query with one candidate and scores it; costs are those of one such pair.

    Args:
        data_root: The folder that files and tokenizer are relative to.
        cache: kdnas's cache folder.
        train: File, glob, folder that `save_to_disk` wrote for a split, or member of an archive as
            `swag.tar.xz/train.jsonl`; or several.
        tokenizer: The teacher's Hugging Face folder; or `bpe` or `bytes`, trained on the training texts, for teachers
            that are trained here: `{type: bpe, vocabulary: 8192}`.
        validation: The same as `train`, for the lists that students are scored on; else a share of `train` is drawn.
        test: The same for the test lists.
        test_fraction: Share of `train` that makes the test split; give this or `test`.
        query_column: Name of the query's column, or its place from 0; with `candidates` found where both have a usual
            name, as `query`, `question` or `context` and `candidates`, `endings` or `choices`.
        candidates: The column that holds lists, or those of one candidate each, in their order.
        label_column: The column that tells which candidate is right, counted from 0; found where it has a usual name.
        length: Tokens that a query with its candidate is cut at, special ones counted. None: the longest, at most 512
            and at most what the model of the tokenizer takes.
        delimiter: Between the columns of .csv files; found where it is not stated.
        encoding: Of the characters; None: UTF-8, or the encoding that a byte order mark or all lines of a file show.
        header: Whether the first row names the columns; found where it is not stated.
        quoting: Whether quotes stand around texts; None: not in files that tabs separate.

    Raises DataError naming every row that is no such list.
    """
    if (test is None) == (test_fraction is None):
        raise ConfigError("text_lists: give either `test` or `test_fraction`")
    if (query_column is None) != (candidates is None):
        raise ConfigError("text_lists: give both `query_column` and `candidates`, or neither")
    read = None if query_column is None or candidates is None else (query_column, *_several(candidates))
    reading = Reading(read, label_column, delimiter, encoding, header, quoting, lists=True)
    source = table_source(data_root, {"train": train, "validation": validation, "test": test}, reading)
    found = cached_texts(source, cache, Reader(tokenizer, data_root, length, test_fraction, lists=True))
    assert isinstance(found, RankingData)
    return found


def _several(candidates: Columns) -> tuple[Column, ...]:
    return candidates if isinstance(candidates, tuple) else (candidates,)
