"""What every task must keep, whoever wrote it: run over the registry on samples of the task's own shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from kdnas.core.data import Data, ImageData, Samples
from kdnas.core.task import TaskSpec
from kdnas.core.text import CorpusData
from kdnas.nn.rows import Batch
from kdnas.tasks import TASKS, Task, task_of
from kdnas.training.batches import Batches

CPU = torch.device("cpu")
COUNT = 24


def images() -> ImageData:
    rng = np.random.default_rng(0)
    part = Samples({"pixels": rng.integers(0, 256, (COUNT, 3, 8, 6), dtype=np.uint8)}, np.arange(COUNT) % 4)
    return ImageData("random", tuple("abcd"), part, part, "f", (120.0, 110.0, 100.0), (60.0, 50.0, 40.0))


def blocks() -> CorpusData:
    tokens = np.random.default_rng(0).integers(0, 11, (COUNT, 9), dtype=np.uint16)
    part = Samples({"tokens": tokens[:, :-1]}, tokens[:, 1:])
    stated = {"tokenizer": Path(), "vocabulary": 11, "length": 8, "bytes_per_token": (1.0, 1.0)}
    return CorpusData("random", (), part, part, "f", **stated)


EXAMPLES = {"image_classification": images, "language_modelling": blocks}
"""A small data set of every task of kdnas's own."""


@dataclass(frozen=True)
class Case:
    data: Data
    task: Task

    @property
    def spec(self) -> TaskSpec:
        return self.task.spec

    def batch(self) -> Batch:
        (batch,) = Batches(self.data, np.arange(COUNT), device=CPU).ordered(batch_size=COUNT)
        return batch

    def logits(self, seed: int = 0) -> torch.Tensor:
        shape = (COUNT, self.spec.outputs) if self.spec.rows == 1 else (COUNT, self.spec.rows, self.spec.outputs)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=TASKS.names())
def case(request: pytest.FixtureRequest) -> Case:
    data = EXAMPLES[request.param]()
    return Case(data, task_of(data.task))


def test_a_split_parts_the_samples_and_is_a_function_of_the_seed(case: Case) -> None:
    targets = case.data.train.targets
    kept, carved = case.task.split(targets, 0.25, 3)
    assert sorted([*kept, *carved]) == list(range(COUNT))
    assert abs(len(carved) - COUNT / 4) <= 2
    assert all(np.array_equal(part, np.sort(part)) for part in (kept, carved))
    again, other = case.task.split(targets, 0.25, 3)[1], case.task.split(targets, 0.25, 4)[1]
    assert np.array_equal(again, carved)
    assert not np.array_equal(other, carved)
    drawn = case.task.draw(targets, 0.5, 3)
    assert np.array_equal(drawn, np.unique(drawn))
    assert 0.4 * COUNT <= len(drawn) <= 0.7 * COUNT


def test_default_views_leave_samples_as_they_are(case: Case) -> None:
    train = Batches(case.data, np.arange(COUNT), device=CPU)
    plain, viewed = (next(train.epoch(0, batch_size=COUNT, views=views, seed=1)) for views in (None, case.task.Views()))
    assert torch.equal(plain.samples, viewed.samples)
    assert torch.equal(plain.targets, viewed.targets)
    for mine, theirs, taken in zip(plain.inputs, viewed.inputs, case.spec.inputs, strict=True):
        assert torch.equal(mine, theirs)
        assert tuple(mine.shape) == (COUNT, *taken.shape)
        assert mine.is_floating_point() == (taken.kind in ("pixels", "floats"))
    assert not case.task.mixes(case.task.Views())


def test_the_entrance_hands_samples_of_the_stated_size_to_the_network(case: Case) -> None:
    seen: list[tuple[int, ...]] = []

    class Watching(torch.nn.Module):
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(tuple(taken.shape[1:]) for taken in inputs))
            return inputs[0]

    network, half = Watching(), max(1, case.spec.size // 2)
    for size in (None, case.spec.size, half):
        entered = case.task.entrance(network, case.data, size)
        assert entered.network is network
        entered(*case.batch().inputs)
    shapes = [tuple(taken.shape for taken in spec.inputs) for spec in (case.spec, case.spec, case.spec.at(half))]
    assert seen == shapes


def test_tallies_of_parts_add_up_to_the_score_of_the_whole(case: Case) -> None:
    batch, logits = case.batch(), case.logits()
    whole = case.task.tally(case.task.rows(logits, batch.inputs, batch.targets))
    assert whole.shape == (2,)
    assert whole.dtype == torch.float64
    parts = [
        case.task.tally(case.task.rows(logits[part], batch[part].inputs, batch[part].targets))
        for part in (slice(0, 7), slice(7, COUNT))
    ]
    assert case.task.score(torch.stack(parts).sum(dim=0)) == pytest.approx(case.task.score(whole))


def test_a_network_that_knows_the_targets_beats_the_worst_score(case: Case) -> None:
    batch = case.batch()
    rows = case.task.rows(case.logits(), batch.inputs, batch.targets)
    assert rows.logits.shape == (COUNT * case.spec.rows, case.spec.outputs)
    assert len(rows.targets) == len(rows.logits)
    known = 20.0 * torch.nn.functional.one_hot(rows.targets, case.spec.outputs)
    best = case.task.score(case.task.tally(case.task.rows(known.float(), batch.inputs, batch.targets)))
    worst = case.task.worst(case.data.train.targets)
    assert best > worst if case.spec.score.direction == "maximize" else best < worst
