"""Texts as tokens: sequences of any length in one array, seen as the padded rows that a network takes.

Shapes: N samples, S tokens of all of them, T the longest that a network is given, K candidates of a list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kdnas.core.data import Data
from kdnas.core.objective import ACCURACY, OF_CLASSES, OF_LISTS, OF_VALUES, PERPLEXITY, SPEARMAN, Quantity
from kdnas.core.task import Input, TaskSpec

TEXT_CLASSIFICATION, TEXT_REGRESSION = "text_classification", "text_regression"
TEXT_RANKING = "text_ranking"
LANGUAGE_MODELLING = "language_modelling"
BYTES_PER_TOKEN = "bytes_per_token"
"""Of the text that is scored and of the test text."""
Places = int | slice | np.ndarray
"""Rows of an array, as numpy's brackets take them."""


def text_classification(length: int, vocabulary: int, classes: int, *, pairs: bool = False) -> TaskSpec:
    """Return the task of naming the class of a text of at most `length` tokens, scored by accuracy.

    A network takes `tokens` [B, T] and `mask` [B, T], 1 where there is text; of two texts in a row `segments` [B, T]
    mark which one a token belongs to.
    """
    return TaskSpec(TEXT_CLASSIFICATION, _inputs(length, vocabulary, pairs), classes, 1, ACCURACY, "texts")


def text_regression(length: int, vocabulary: int, *, pairs: bool = False) -> TaskSpec:
    """Return the task of predicting the one number of a text, scored by Spearman's correlation.

    A network takes what one that names classes takes (`text_classification`).
    """
    return TaskSpec(TEXT_REGRESSION, _inputs(length, vocabulary, pairs), 1, 1, SPEARMAN, "texts")


def text_ranking(length: int, vocabulary: int, candidates: int) -> TaskSpec:
    """Return the task of scoring the right one of `candidates` texts highest that answer a query.

    A network takes the query and one candidate as a pair (`text_classification`), and gives one number, its score.
    """
    lists = TaskSpec(TEXT_RANKING, _inputs(length, vocabulary, True), 1, 1, ACCURACY, "lists")
    return replace(lists, candidates=candidates)


def _inputs(length: int, vocabulary: int, pairs: bool) -> tuple[Input, ...]:
    inputs = [Input("tokens", (length,), "tokens", vocabulary), Input("mask", (length,), "mask", 2)]
    return (*inputs, *([Input("segments", (length,), "tokens", 2)] if pairs else []))


def language_modelling(length: int, vocabulary: int) -> TaskSpec:
    """Return the task of predicting the next token at each of `length` places of a block, scored by perplexity."""
    tokens = Input("tokens", (length,), "tokens", vocabulary)
    return TaskSpec(LANGUAGE_MODELLING, (tokens,), vocabulary, length, PERPLEXITY, "blocks")


def bits_per_byte(perplexity: float, bytes_per_token: float) -> float:
    """Return what a perplexity per token is in bits per byte of text, which tokenizers do not change."""
    return math.log2(perplexity) / bytes_per_token


@dataclass(frozen=True, eq=False)
class Sequences:
    """N sequences in one array: sequence n is `values[starts[n] : stops[n]]`; or N lists of K sequences.

    `values` [S] are unsigned whole numbers, perhaps a read-only memory map; `starts` and `stops` are int64 [N], or
    [N, K].
    """

    values: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, eq=False)
class _Rows:
    """What stands in the place of an array [N, T] of sequences, or [N, K, T], whose rows are made when asked for."""

    sequences: Sequences
    length: int
    dtype: ClassVar[np.dtype[Any]]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, T), or (N, K, T)."""
        return *self.sequences.starts.shape, self.length

    @property
    def ndim(self) -> int:
        """2, or 3 of lists."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def nbytes(self) -> int:
        """Of the rows, made."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        made: np.ndarray = self[slice(None)]
        return made if dtype is None else made.astype(dtype)

    def __getitem__(self, rows: Places) -> Any:
        if isinstance(rows, int | np.integer):
            return self[np.array([rows])][0]
        return self._made(self.sequences.starts[rows], self.sequences.stops[rows])

    def _made(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Return the rows [n, T], or [n, K, T], of the sequences that start and stop there, int64 [n] or [n, K]."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Padded(_Rows):
    """Sequences as an array [N, T] int32: cut at T = `length`, filled up with `fill`."""

    fill: int = 0
    dtype = np.dtype(np.int32)

    def _made(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        columns = np.arange(self.length)
        there = columns < (stops - starts)[..., None]
        made = np.full(there.shape, self.fill, dtype=self.dtype)
        made[there] = self.sequences.values[(starts[..., None] + columns)[there]]
        return made


@dataclass(frozen=True, eq=False)
class Mask(_Rows):
    """Which places of padded sequences hold text, as an array [N, T] uint8 of 1 and 0."""

    dtype = np.dtype(np.uint8)

    def _made(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        return (np.arange(self.length) < (stops - starts)[..., None]).astype(self.dtype)


@dataclass(frozen=True)
class TokenData(Data):
    """Data that a tokenizer has read: what is common to texts with a label and to running text."""

    tokenizer: Path = field(kw_only=True)
    """The folder that its files are kept in, as `AutoTokenizer.from_pretrained` opens them."""
    vocabulary: int = field(kw_only=True)
    """Rows of an embedding of its tokens: the teacher's, where that is larger than the tokenizer's."""
    length: int = field(kw_only=True)
    """T, the longest sequence that a network is given."""


@dataclass(frozen=True)
class TextData(TokenData):
    """Texts with one label each: int64 [N] are classes, float32 [N] are numbers to be predicted."""

    poses: ClassVar[str] = TEXT_CLASSIFICATION
    scores: ClassVar[tuple[Quantity, ...]] = (*OF_CLASSES, *OF_VALUES)

    @property
    def predicts_values(self) -> bool:
        """Whether labels are numbers, which no classes are."""
        return np.issubdtype(self.train.targets.dtype, np.floating)

    @cached_property
    def task(self) -> TaskSpec:
        """Text classification, or regression."""
        pairs = "segments" in self.train.inputs
        if self.predicts_values:
            return self.put_to(text_regression(self.length, self.vocabulary, pairs=pairs))
        return self.put_to(text_classification(self.length, self.vocabulary, len(self.class_names), pairs=pairs))


@dataclass(frozen=True)
class RankingData(TextData):
    """Queries with lists of K candidates each, [N, K, T], of which one is right: its place is the target, int64 [N]."""

    poses: ClassVar[str] = TEXT_RANKING
    scores: ClassVar[tuple[Quantity, ...]] = OF_LISTS

    @cached_property
    def task(self) -> TaskSpec:
        """Text ranking."""
        return self.put_to(text_ranking(self.length, self.vocabulary, self.train.inputs["tokens"].shape[1]))


@dataclass(frozen=True)
class CorpusData(TokenData):
    """Running text in blocks of T tokens; the target of each token is the one that follows it, [N, T]."""

    poses: ClassVar[str] = LANGUAGE_MODELLING
    bytes_per_token: tuple[float, float] = field(kw_only=True)
    """Of the text that is scored and of the test text: UTF-8 bytes that a token stands for on average."""
    scores: ClassVar[tuple[Quantity, ...]] = (PERPLEXITY,)

    @property
    def statistics(self) -> Mapping[str, tuple[float, ...]]:
        """What turns a perplexity into bits per byte."""
        return {BYTES_PER_TOKEN: self.bytes_per_token}

    @cached_property
    def task(self) -> TaskSpec:
        """Language modelling."""
        return self.put_to(language_modelling(self.length, self.vocabulary))
