"""What every task keeps, on a small data set of its own samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdnas.core.data import Data, ImageData, Samples
from kdnas.core.task import TaskSpec
from kdnas.nn.rows import Batch
from kdnas.tasks import TASKS, Task, task_of
from kdnas.testing._member import MemberConformance
from kdnas.training.batches import Batches

COUNT = 24
CPU = torch.device("cpu")


class _Watching(torch.nn.Module):
    """Notes the shapes of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], ...]] = []

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(tuple(taken.shape[1:]) for taken in inputs))
        return inputs[0]


def _known(spec: TaskSpec, targets: torch.Tensor) -> torch.Tensor:
    """Return [M, V]: 1 at the class that is right, of each of several tasks."""
    if not spec.heads:
        return torch.nn.functional.one_hot(targets, spec.logits)
    columns = zip(spec.heads, targets.unbind(dim=1), strict=True)
    return torch.cat([torch.nn.functional.one_hot(own, head.outputs) for head, own in columns], dim=1)


class TaskConformance(MemberConformance):
    """The suite of tasks."""

    registry = TASKS

    def data(self, kind: str) -> Data:
        """Return a data set of 24 samples, the same for training and test, of the task called `kind`: here of images.

        Each of its classes, where it has such, has as many samples.
        """
        rng = np.random.default_rng(0)
        part = Samples({"pixels": rng.integers(0, 256, (COUNT, 3, 8, 6), dtype=np.uint8)}, np.arange(COUNT) % 4)
        return ImageData("random", tuple("abcd"), part, part, "f", (120.0, 110.0, 100.0), (60.0, 50.0, 40.0), kind=kind)

    @pytest.fixture
    def opened(self, monkeypatch: pytest.MonkeyPatch) -> Data:
        """The data, posing the very member."""
        member, kind = self._member, self._member
        if not isinstance(member, str):
            kind = member.__name__
            monkeypatch.setitem(TASKS._members, kind, member)
        return self.data(kind)

    @pytest.fixture
    def task(self, opened: Data) -> Task:
        """The member, for its data."""
        return task_of(opened.task)

    @pytest.fixture
    def batch(self, opened: Data) -> Batch:
        """All training samples, plain."""
        (batch,) = Batches(opened, np.arange(COUNT), device=CPU).ordered(batch_size=COUNT)
        return batch

    @staticmethod
    def _logits(task: Task, batch: Batch) -> torch.Tensor:
        spec = task.spec
        places = batch.inputs[0].shape[1:] if spec.rows > 1 else ()
        return torch.randn((COUNT, *places, spec.logits), generator=torch.Generator().manual_seed(0))

    def test_a_split_parts_the_samples_and_is_a_function_of_the_seed(self, opened: Data, task: Task) -> None:
        targets = np.asarray(opened.train.targets)
        kept, carved = task.split(targets, 0.25, 3)
        assert sorted([*kept, *carved]) == list(range(COUNT))
        assert abs(len(carved) - COUNT / 4) <= 2
        assert all(np.array_equal(part, np.sort(part)) for part in (kept, carved))
        again, other = task.split(targets, 0.25, 3)[1], task.split(targets, 0.25, 4)[1]
        assert np.array_equal(again, carved)
        assert not np.array_equal(other, carved)
        drawn = task.draw(targets, 0.5, 3)
        assert np.array_equal(drawn, np.unique(drawn))
        assert 0.4 * COUNT <= len(drawn) <= 0.7 * COUNT

    def test_default_views_leave_samples_as_they_are(self, opened: Data, task: Task) -> None:
        train = Batches(opened, np.arange(COUNT), device=CPU)
        plain, viewed = (next(train.epoch(0, batch_size=COUNT, views=views, seed=1)) for views in (None, task.Views()))
        assert torch.equal(plain.samples, viewed.samples)
        assert torch.equal(plain.targets, viewed.targets)
        for mine, theirs, taken in zip(plain.inputs, viewed.inputs, task.spec.inputs, strict=True):
            assert torch.equal(mine, theirs)
            assert len(mine) == COUNT
            assert all(
                side <= most for side, most in zip(mine.shape[1:], (*task.spec.listed, *taken.shape), strict=True)
            )
            assert mine.is_floating_point() == (taken.kind in ("pixels", "floats"))
        assert not task.mixes(task.Views())
        assert not task.mixes(None)

    def test_the_entrance_hands_samples_of_the_stated_size_to_the_network(
        self, opened: Data, task: Task, batch: Batch
    ) -> None:
        network, spec = _Watching(), task.spec
        task.check_statistics(opened.statistics)
        for size in (None, spec.size, max(1, spec.size // 2)):
            entered = task.entrance(network, opened, size)
            assert entered.network is network
            entered(*batch.inputs)
        whole = tuple(tuple(taken.shape[1 + len(spec.listed) :]) for taken in batch.inputs)
        half = tuple(taken.shape for taken in spec.at(max(1, spec.size // 2)).inputs)
        assert network.seen == [whole, whole, half]

    def test_tallies_of_parts_add_up_to_the_score_of_the_whole(self, task: Task, batch: Batch) -> None:
        logits = self._logits(task, batch)
        whole = task.tally(task.rows(logits, batch.inputs, batch.targets))
        assert whole.ndim == 1
        assert whole.dtype == torch.float64
        parts = [
            task.tally(task.rows(logits[part], batch[part].inputs, batch[part].targets))
            for part in (slice(0, 7), slice(7, COUNT))
        ]
        assert task.score(task.together(parts)) == pytest.approx(task.score(whole))
        assert task.scores(whole)[task.spec.score.name] == task.score(whole)

    def test_a_network_that_knows_the_targets_beats_the_worst_score(
        self, opened: Data, task: Task, batch: Batch
    ) -> None:
        logits, spec = self._logits(task, batch), task.spec
        rows = task.rows(logits, batch.inputs, batch.targets)
        assert rows.logits.shape == (logits.numel() // spec.logits, spec.logits)
        assert len(rows.targets) == len(rows.logits)
        true = rows.targets[:, None] if spec.logits == 1 else _known(spec, rows.targets)
        known = 20.0 * true
        best = task.score(task.tally(task.rows(known.float().view_as(logits), batch.inputs, batch.targets)))
        worst = task.worst(np.asarray(opened.train.targets))
        assert best > worst if spec.score.direction == "maximize" else best < worst
