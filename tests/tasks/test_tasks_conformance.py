"""Every task of the registry keeps its family's contract, and so does one of a user's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from kdnas.core.data import Data, ImageData, Samples
from kdnas.core.task import Head
from kdnas.core.text import CorpusData, Mask, Padded, RankingData, Sequences, TextData
from kdnas.tasks.image_classification import ImageClassification
from kdnas.testing import TaskConformance, suites
from kdnas.testing.tasks import COUNT


def _blocks(self: TaskConformance, kind: str) -> Data:
    tokens = np.random.default_rng(0).integers(0, 11, (COUNT, 9), dtype=np.uint16)
    part = Samples({"tokens": tokens[:, :-1]}, tokens[:, 1:])
    stated = {"tokenizer": Path(), "vocabulary": 11, "length": 8, "bytes_per_token": (1.0, 1.0)}
    return CorpusData("random", (), part, part, "f", kind=kind, **stated)


def _texts(self: TaskConformance, kind: str) -> Data:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 12, COUNT)
    lengths[0] = 12
    stops = np.cumsum(lengths)
    sequences = Sequences(rng.integers(1, 11, stops[-1], dtype=np.uint16), stops - lengths, stops)
    part = Samples({"tokens": Padded(sequences, 12), "mask": Mask(sequences, 12)}, np.arange(COUNT) % 4)
    return TextData("random", tuple("abcd"), part, part, "f", tokenizer=Path(), vocabulary=11, length=12, kind=kind)


def _valued(self: TaskConformance, kind: str) -> Data:
    data = _texts(self, kind)
    assert isinstance(data, TextData)
    part = replace(data.train, targets=np.random.default_rng(1).normal(size=COUNT).astype(np.float32))
    return replace(data, train=part, test=part, class_names=())


def _lists(self: TaskConformance, kind: str) -> Data:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 12, (COUNT, 3))
    lengths[0, 0] = 12
    stops = np.cumsum(lengths).reshape(COUNT, 3)
    sequences = Sequences(rng.integers(1, 11, stops[-1, -1], dtype=np.uint16), stops - lengths, stops)
    inputs = {"tokens": Padded(sequences, 12), "mask": Mask(sequences, 12), "segments": Padded(sequences, 12)}
    part = Samples(inputs, np.arange(COUNT) % 3)
    return RankingData("random", (), part, part, "f", tokenizer=Path(), vocabulary=11, length=12, kind=kind)


def _of_two_tasks(self: TaskConformance, kind: str) -> Data:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 3, 8, 6), dtype=np.uint8)
    part = Samples({"pixels": pixels}, np.stack([np.arange(COUNT) % 4, np.arange(COUNT) % 3], axis=1))
    names = ("letter: a", "letter: b", "letter: c", "letter: d", "hand: x", "hand: y", "hand: z")
    heads = (Head("letter", 4), Head("hand", 3, 4))
    mean, deviation = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
    return ImageData("random", names, part, part, "f", mean, deviation, kind=kind, heads=heads)


own = {
    "language_modelling": _blocks,
    "multitask_image_classification": _of_two_tasks,
    "text_classification": _texts,
    "text_ranking": _lists,
    "text_regression": _valued,
}
globals().update(suites(TaskConformance, **{name: {"data": data} for name, data in own.items()}))


class _Mirrored(ImageClassification):
    """Images of things that have no left and no right."""


class TestATaskOfOnesOwn(TaskConformance):
    member = _Mirrored
