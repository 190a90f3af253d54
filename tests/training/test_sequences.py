"""A task of another kind, tokens [B, T] with a mask, through the very loop, losses, cache and evaluation of images."""

from __future__ import annotations

import math
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnas.core.data import Data, Samples
from kdnas.core.objective import Quantity
from kdnas.core.task import Input, TaskSpec
from kdnas.nn.rows import Batch, Rows
from kdnas.nn.taps import Taps
from kdnas.registry import Section
from kdnas.tasks import TASKS, Task
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.evaluation import evaluate
from kdnas.training.loop import Course, Pupil, Trained, train
from kdnas.training.recipe import Distillation, LossTerm, Recipe, Training
from kdnas.training.teacher_cache import TeacherCache

CPU = torch.device("cpu")
FLOAT32 = Training(precision="float32")
LENGTH, VOCABULARY, COUNT, PADDING, TRAINED = 6, 11, 96, 9, 64


class Modelling(Task):
    """The next token at each position that the mask says is text; perplexity."""

    class Views(Section):
        """There are none."""

    def plain(self, batch: Batch) -> Batch:
        return Batch(tuple(taken.long() for taken in batch.inputs), batch.targets, batch.samples)

    def view(self, batch: Batch, views: Any, data: Any, **drawn: Any) -> Batch:
        return self.plain(batch)

    def entrance(self, network: nn.Module, data: Any, size: int | None = None) -> nn.Module:
        return Entered(network)

    def weights(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        return inputs[1].float()

    def tally(self, rows: Rows) -> Tensor:
        assert rows.weights is not None
        nats = F.cross_entropy(rows.logits.float(), rows.targets, reduction="none")
        return torch.stack([(nats * rows.weights).sum(), rows.weights.sum()]).double()

    def score(self, tally: Tensor) -> float:
        return math.exp(float(tally[0]) / float(tally[1]))

    def worst(self, targets: np.ndarray) -> float:
        share = np.bincount(targets.ravel()) / targets.size
        share = share[share > 0]
        return float(np.exp(-(share * np.log(share)).sum()))


class Entered(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.network(tokens, mask)


class Bigram(nn.Module):
    """Logits [B, T, V] of the next token, from the present one alone."""

    def __init__(self, width: int, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.classifier = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.classifier(torch.tanh(self.embedding(tokens)))


class TokenData(Data):
    @property
    def task(self) -> TaskSpec:
        inputs = Input("tokens", (LENGTH,), "tokens", VOCABULARY), Input("mask", (LENGTH,), "mask", 2)
        return TaskSpec(
            "modelling", inputs, VOCABULARY, LENGTH, Quantity("perplexity", "per token", "minimize", "trained")
        )


def data_with(padding: int) -> TokenData:
    """Return sequences of a noisy counter; what is not text is `padding`, in tokens and in targets."""
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.choice([1, 2], p=[0.8, 0.2], size=(COUNT, LENGTH + 1)), axis=1)
    text = (rng.integers(0, VOCABULARY, (COUNT, 1)) + steps) % VOCABULARY
    mask = np.arange(LENGTH)[None, :] < rng.integers(2, LENGTH + 1, (COUNT, 1))
    tokens, targets = (np.where(mask, part, padding) for part in (text[:, :-1], text[:, 1:]))
    part = Samples({"tokens": tokens.astype(np.int32), "mask": mask.astype(np.uint8)}, targets.astype(np.int64))
    return TokenData("counter", (), part, part, f"counter {padding}")


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS._members, "modelling", Modelling)


class Asked(nn.Module):
    """A teacher that counts the sequences it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.count = Bigram(16, seed=5), 0

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        self.count += len(tokens)
        return self.network(tokens, mask)


def teacher() -> Teacher:
    return Teacher("bigram", Asked().eval(), (), "network.classifier", fingerprint="bigram")


def batches(data: Data, stop: int = 64) -> Batches:
    return Batches(data, np.arange(stop), device=CPU)


_LOSSES = (LossTerm(type="kd", weight=0.9, temperature=2.0), LossTerm(type="dkd"))


def trained(
    data: Data,
    guide: Teacher | None,
    cache: TeacherCache | None = None,
    losses: tuple[LossTerm, ...] = _LOSSES,
    **training: Any,
) -> Trained:
    settings = {"epochs": 3, "batch_size": 16, "precision": "float32", "learning_rate": 0.5, **training}
    losses = () if guide is None else losses
    recipe = Recipe(training=Training(**settings), distillation=Distillation(task_weight=0.5, losses=losses))
    validation = Batches(data, np.arange(64, COUNT), device=CPU)
    course = Course(data, batches(data), validation, guide, 3, CPU, cache)
    (outcome,) = train(course, [Pupil(Bigram(8, seed=1), recipe, 1)])
    assert isinstance(outcome, Trained)
    return outcome


def same(first: Trained, second: Trained) -> bool:
    pairs = zip(first.network.parameters(), second.network.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs) and first.score == second.score


def test_it_learns_what_a_counter_does() -> None:
    outcome = trained(data_with(0), None, epochs=20)
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))  # a perfect student's
    assert math.exp(entropy) - 0.05 < outcome.score < 2.5
    assert outcome.score < Modelling(data_with(0).task).worst(data_with(0).train.targets) / 3


def written_out(data: TokenData, guide: Teacher | None) -> tuple[Bigram, list[float]]:
    """Return the student of one epoch by the losses written out on the tokens that are text, and the losses."""
    network, found = Bigram(8, seed=1), []
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for batch in batches(data).epoch(0, batch_size=16, seed=3):
        tokens, mask = batch.inputs
        chosen = mask.bool()
        ours, targets = network(tokens, mask)[chosen], batch.targets[chosen]
        loss = 0.5 * F.cross_entropy(ours, targets)
        if guide is not None:
            with torch.no_grad():
                theirs = guide.module(tokens, mask)[chosen]
            p, q = (theirs / 2).softmax(1), (ours / 2).log_softmax(1)
            loss = loss + 0.9 * 4 * (p * (p.log() - q)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return network, found


@pytest.mark.parametrize("guided", [False, True])
def test_losses_and_weights_are_those_of_the_tokens_that_are_text(guided: bool, monkeypatch) -> None:
    data, guide = data_with(PADDING), teacher() if guided else None
    monkeypatch.setattr("kdnas.training.step.learning_rate", lambda *place: 0.01)
    plain = {"momentum": 0.0, "weight_decay": 0.0, "epochs": 1, "batch_size": 16, "precision": "float32"}
    losses = (LossTerm(type="kd", weight=0.9, temperature=2.0),) if guided else ()
    recipe = Recipe(training=Training(**plain), distillation=Distillation(task_weight=0.5, losses=losses))
    (outcome,) = train(Course(data, batches(data), None, guide, 3, CPU), [Pupil(Bigram(8, seed=1), recipe, 1)])
    network, found = written_out(data, guide)
    for ours, expected in zip(outcome.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)
    assert outcome.history[0].loss == pytest.approx(np.mean(found), rel=1e-5)


@pytest.mark.parametrize("guided", [False, True])
def test_what_padding_holds_changes_nothing(guided: bool) -> None:
    outcomes = [trained(data_with(padding), teacher() if guided else None) for padding in (0, PADDING)]
    assert same(*outcomes)


@pytest.mark.parametrize("top_k", [None, VOCABULARY])
def test_cached_rows_of_a_teacher_are_its_live_ones(tmp_path: Path, top_k: int | None) -> None:
    data, asked = data_with(0), teacher()
    live = trained(data, asked)
    assert live.live_teacher
    count = asked.module.count
    first = trained(data, asked, TeacherCache(tmp_path, top_k=top_k))
    assert not first.live_teacher
    asked.module.count = 0
    again = trained(data, asked, TeacherCache(tmp_path, top_k=top_k))
    assert asked.module.count == 2  # which tell the shapes
    assert count > 2
    assert same(first, live)
    assert same(again, live)
    size = next(tmp_path.glob("*/*.rows")).stat().st_size
    assert size == TRAINED * LENGTH * (VOCABULARY if top_k is None else VOCABULARY + 1) * 4


class Unvaried(Modelling):
    """Whose samples are the same in every view."""

    def varies(self, views: Any) -> bool:
        return False


def test_views_that_are_the_same_are_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, asked = data_with(0), teacher()
    live = trained(data, asked)
    monkeypatch.setitem(TASKS._members, "modelling", Unvaried)
    first = trained(data, asked, TeacherCache(tmp_path))
    assert same(first, live)
    assert [path.name for path in tmp_path.glob("*/*.rows")] == ["view00000.rows"]
    asked.module.count = 0
    assert same(trained(data, asked, TeacherCache(tmp_path), epochs=3), live)
    assert asked.module.count == 2  # which tell the shapes


def test_answers_that_the_disk_has_no_room_for_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, asked = data_with(0), teacher()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, TRAINED * LENGTH * VOCABULARY * 4))
    outcome = trained(data, asked, TeacherCache(tmp_path))
    assert outcome.live_teacher
    assert not list(tmp_path.glob("*/*.rows"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    assert not trained(data, asked, TeacherCache(tmp_path)).live_teacher


def test_the_largest_logits_of_each_position_are_kept(tmp_path: Path) -> None:
    data, asked = data_with(0), teacher()
    few = trained(data, asked, TeacherCache(tmp_path, top_k=4))
    assert not same(few, trained(data, asked))
    assert next(tmp_path.glob("*/*.classes")).stat().st_size == TRAINED * LENGTH * 4 * 4
    assert few.score < Modelling(data.task).worst(data.train.targets)


def test_a_score_is_the_perplexity_of_the_tokens_that_are_text() -> None:
    data, network = data_with(PADDING), Bigram(8, seed=2).eval()
    nats: list[float] = []
    for tokens, mask, targets in zip(*data.train.inputs.values(), data.train.targets, strict=True):
        with torch.no_grad():
            chances = network(torch.from_numpy(tokens).long()[None], torch.ones(1, LENGTH)).softmax(-1)[0].double()
        nats += [-math.log(chances[place, targets[place]]) for place in range(LENGTH) if mask[place]]
    entered = Modelling(data.task).entrance(network, data)
    for size in (7, 512):
        score = evaluate(entered, Batches(data, np.arange(COUNT), device=CPU), FLOAT32, batch_size=size)
        assert score == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-6)


def test_taps_give_a_row_and_an_embedding_for_each_position() -> None:
    data, network = data_with(0), Bigram(8, seed=2)
    tokens, mask = next(batches(data).ordered(batch_size=5)).inputs
    with Taps(network, (), "classifier") as tapped:
        outputs = tapped(tokens, mask)
    assert outputs.logits.shape == (5 * LENGTH, VOCABULARY)
    assert outputs.embedding is not None
    assert outputs.embedding.shape == (5 * LENGTH, 8)
    assert torch.equal(outputs.logits.view(5, LENGTH, -1), network(tokens, mask))


def test_drawn_tokens_teach_and_are_the_same_for_everybody(tmp_path: Path) -> None:
    data, asked = data_with(0), teacher()
    losses = (LossTerm(type="kd", weight=0.9, temperature=1.0),)
    caches = [TeacherCache(tmp_path / name, top_k=12, drawn=True) for name in "ab"]
    first, second = (trained(data, asked, cache, losses) for cache in caches)
    assert same(first, second)
    assert not first.live_teacher
    assert not same(first, trained(data, asked, None, losses))
    assert first.score < Modelling(data.task).worst(data.train.targets)
