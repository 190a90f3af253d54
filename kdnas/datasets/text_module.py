"""Labelled texts that the user's own function loads."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdnas.core.text import TextData
from kdnas.core.words import counted
from kdnas.datasets import DATASETS
from kdnas.datasets._inputs import Problems
from kdnas.datasets._own_function import returned_splits
from kdnas.datasets._tables import Found, Row, plain_label
from kdnas.datasets._token_cache import LabelKind, Length, Reader, Source, Split, TokenizerOption, cached_texts

_RETURNS = "(train_texts, train_labels, test_texts, test_labels) or the same with class_names"


@DATASETS.register
def text_module(
    data_root: Path,
    cache: Path,
    *,
    function: str,
    tokenizer: TokenizerOption,
    options: dict[str, Any] | None = None,
    labels: LabelKind | None = None,
    length: Length | None = None,
) -> TextData:
    """Labelled texts from a function of your own: `module:function`, or `path/to/file.py:function` under the data root.

    It is called as `function(data_root, **options)` and returns (train_texts, train_labels, test_texts, test_labels) or
    the same with class_names: texts are lists of str, or of pairs of them, labels texts or whole numbers, which count
    from 0 where class_names are given. A search calls it once: its workers take what it gave from the cache.

    Args:
        data_root: Handed to the function; file paths are relative to it.
        cache: kdnas's cache folder.
        function: The function.
        tokenizer: The teacher's Hugging Face folder; or `bpe` or `bytes`, trained on the training texts.
        options: Keyword arguments of the function.
        labels: Whether labels are `classes` or `values`, numbers that are to be predicted (a regression); None: values
            where one has a fraction.
        length: Tokens that a text is cut at; None: the longest text, at most 512 and what the model takes.

    Raises DataError where the function fails or returns something else; ConfigError where it cannot be imported.
    """
    result, notes = returned_splits(function, data_root, options, _RETURNS)
    splits, names = _checked(result, function)

    def rows(split: Split, found: Found, problems: Problems) -> Iterator[Row]:
        yield from splits.get(split, ())

    content = hashlib.sha256(repr((splits, names)).encode("utf-8", "surrogatepass")).hexdigest()
    size = sum(len(str(text)) for split in splits.values() for row in split for text in row.texts)
    source = Source(function.rpartition(":")[2], {"content": content}, rows, size)
    data = cached_texts(source, cache, Reader(tokenizer, data_root, length, None, names, labels))
    return dataclasses.replace(data, notes=(*data.notes, *notes))


def _checked(result: tuple[Any, ...], function: str) -> tuple[dict[Split, list[Row]], tuple[str, ...] | None]:
    """Return the rows of both splits, and the class names. Raises DataError with every problem."""
    problems = Problems()
    parts: tuple[tuple[Split, Any, Any], ...] = (("train", *result[0:2]), ("test", *result[2:4]))
    splits: dict[Split, list[Row]] = {}
    width = 0
    for split, texts, labels in parts:
        texts, labels = list(texts), [_number(label) for label in labels]
        if len(texts) != len(labels):
            problems.add(f"{function}: {split}", f"{len(labels)} labels for {len(texts)} texts")
        splits[split] = []
        for number, (text, label) in enumerate(zip(texts, labels, strict=False)):
            where = f"{function}: {split} {number}"
            pair: Sequence[Any] = text if isinstance(text, tuple | list) else (text,)
            width = width or len(pair)
            if len(pair) not in (1, 2) or not all(isinstance(one, str) for one in pair):
                problems.add(where, f"is {type(text).__name__} {str(text)[:40]!r}", "a str, or two")
            elif len(pair) != width:
                problems.add(where, f"has {counted(len(pair), 'text')}, the first one {width}", "as many in each")
            else:
                splits[split].append(Row(where, tuple(one.strip() or None for one in pair), plain_label(label)))
    problems.raise_if_any()
    return splits, tuple(map(str, result[4])) if len(result) == 5 else None


def _number(label: Any) -> Any:
    """Return what a label of numpy or torch holds; others as they are."""
    return label.item() if isinstance(label, np.generic) or getattr(label, "shape", None) == () else label
