"""Tables with a text and its label in each row: csv, tsv, JSON lines, parquet and arrow files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from kdnas.core.text import TextData
from kdnas.datasets import DATASETS
from kdnas.datasets._inputs import TestFraction
from kdnas.datasets._tables import Column, Reading
from kdnas.datasets._token_cache import Files, LabelKind, Length, Reader, TokenizerOption, cached_texts, table_source
from kdnas.errors import ConfigError


@DATASETS.register
def text_table(
    data_root: Path,
    cache: Path,
    *,
    train: Files,
    tokenizer: TokenizerOption,
    validation: Files | None = None,
    test: Files | None = None,
    test_fraction: TestFraction | None = None,
    text_column: Column | tuple[Column, Column] | None = None,
    label_column: Column | None = None,
    class_names: tuple[str, ...] | None = None,
    labels: LabelKind | None = None,
    length: Length | None = None,
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None,
    encoding: str | None = None,
    header: bool | None = None,
    quoting: bool | None = None,
) -> TextData:
    """Rows of one or two texts and a label: .csv, .tsv, .jsonl, .parquet, or what `datasets` saved to disk.

    Labels are texts, which are sorted, or whole numbers, for which the Hugging Face metadata (ClassLabel) of parquet
    and arrow files give the names; or numbers with fractions, which are predicted as they are. Rows with an empty text
    are left out, which is reported. Texts are tokenised once into the cache.

    Args:
        data_root: The folder that files and tokenizer are relative to.
        cache: kdnas's cache folder.
        train: File, glob, folder that `save_to_disk` wrote for a split, or member of an archive as
            `reviews.tar.xz/train.tsv`; or several.
        tokenizer: The teacher's Hugging Face folder; or `bpe` or `bytes`, trained on the training texts, for teachers
            that are trained here: `{type: bpe, vocabulary: 8192}`.
        validation: The same as `train`, for the texts that students are scored on; else a share of `train` is drawn.
        test: The same for the test texts.
        test_fraction: Share of every class of `train` that makes the test split; give this or `test`.
        text_column: Name of the text column, its place from 0, or two of them; found where it has a usual name.
        label_column: The same of the label column.
        class_names: The names in the order of the classes.
        labels: Whether labels are `classes` or `values`, numbers that are to be predicted (a regression); None: values
            where one has a fraction.
        length: Tokens that a text is cut at, special ones counted. None: the longest text, at most 512 and at most
            what the model of the tokenizer takes.
        delimiter: Between the columns of .csv files; found where it is not stated.
        encoding: Of the characters; None: UTF-8, or the encoding that a byte order mark or all lines of a file show.
        header: Whether the first row names the columns; found where it is not stated.
        quoting: Whether quotes stand around texts; None: not in files that tabs separate.

    Raises DataError naming every row that cannot be read, and what is wrong with the labels.
    """
    if (test is None) == (test_fraction is None):
        raise ConfigError("text_table: give either `test` or `test_fraction`")
    text = None if text_column is None else text_column if isinstance(text_column, tuple) else (text_column,)
    reading = Reading(text, label_column, delimiter, encoding, header, quoting)
    source = table_source(data_root, {"train": train, "validation": validation, "test": test}, reading)
    return cached_texts(source, cache, Reader(tokenizer, data_root, length, test_fraction, class_names, labels))
