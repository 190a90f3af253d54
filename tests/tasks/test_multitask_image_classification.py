"""Several tasks on one image: splits, scores, what is learnt of specialists, of samples with some labels or none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdnas.core.data import ImageData, Samples
from kdnas.core.task import Head
from kdnas.errors import ConfigError
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes
from kdnas.tasks import task_of
from kdnas.training.ensemble import OutputsByTeacher
from kdnas.training.loss import TrainingLoss
from kdnas.training.recipe import Distillation, LossTerm

HEADS = (Head("digit", 4), Head("speaker", 3, 4))
N = 96
STUDENT = OutputShapes(7, heads=HEADS)
SPECIALISTS = {"a": OutputShapes(4, heads=(Head("digit", 4),)), "b": OutputShapes(3, heads=(Head("speaker", 3),))}


@pytest.fixture
def targets() -> np.ndarray:
    found = np.stack([np.arange(N) % 4, np.arange(N) // 4 % 3], axis=1)
    found[::5, 0] = -1
    found[::10, 1] = -1
    return found


@pytest.fixture
def data(targets: np.ndarray) -> ImageData:
    part = Samples({"pixels": np.zeros((N, 1, 4, 4), dtype=np.uint8)}, targets)
    names = tuple(f"{head.name}: {place}" for head in HEADS for place in range(head.outputs))
    return ImageData("two", names, part, part, "f", (0.0,), (1.0,), heads=HEADS)


@pytest.fixture
def logits() -> torch.Tensor:
    return 2 * torch.randn(N, 7, generator=torch.Generator().manual_seed(0))


def test_scores_are_of_each_task_over_its_labels_and_their_mean(
    data: ImageData, targets: np.ndarray, logits: torch.Tensor
) -> None:
    task = task_of(data.task)
    scores = task.scores(task.tally(task.rows(logits, (), torch.from_numpy(targets))))
    of_each = {}
    for place, head in enumerate(HEADS):
        known = targets[:, place] >= 0
        told = logits[:, head.places].argmax(1).numpy()
        of_each[head.name] = (told == targets[:, place])[known].mean()
    assert scores["digit.accuracy"] == pytest.approx(of_each["digit"])
    assert scores["speaker.accuracy"] == pytest.approx(of_each["speaker"])
    assert scores["accuracy"] == pytest.approx(np.mean(list(of_each.values())))
    assert [score.name for score in data.task.scores] == ["accuracy", "digit.accuracy", "speaker.accuracy"]


def test_samples_without_any_label_are_trained_on_and_not_scored(data: ImageData, targets: np.ndarray) -> None:
    kept, carved = task_of(data.task).split(targets, 0.25, 3)
    nothing = np.flatnonzero((targets < 0).all(axis=1))
    assert len(nothing)
    assert np.isin(nothing, kept).all()
    assert len(carved) == pytest.approx(0.25 * (N - len(nothing)), abs=8)
    for place, classes in enumerate((4, 3)):
        assert set(targets[carved, place]) >= set(range(classes))


def test_a_specialist_is_given_the_labels_of_its_task(data: ImageData, targets: np.ndarray) -> None:
    asked = data.asking("speaker")
    assert asked.class_names == ("0", "1", "2")
    assert asked.task.outputs == 3
    assert not asked.task.heads
    assert asked.task.partly
    assert np.array_equal(asked.train.targets, targets[:, 1])
    assert asked.fingerprint != data.asking("digit").fingerprint


def test_every_task_has_its_cross_entropy_and_kd_of_its_specialist(targets: np.ndarray, logits: torch.Tensor) -> None:
    """By name or as the ensemble of those who answer it. Unlabelled samples are learnt of the teacher alone."""
    generator = torch.Generator().manual_seed(1)
    said = {name: torch.randn(N, shapes.outputs, generator=generator) for name, shapes in SPECIALISTS.items()}
    theirs = OutputsByTeacher({name: Outputs(each) for name, each in said.items()})
    labels = torch.from_numpy(targets)
    rows = Rows(logits, labels, None, labels >= 0, HEADS)
    expected = torch.zeros(())
    for place, (head, name) in enumerate(zip(HEADS, SPECIALISTS, strict=True)):
        known = labels[:, place] >= 0
        own = logits[:, head.places]
        expected += 0.5 * F.cross_entropy(own[known], labels[known, place])
        expected += 0.7 * 4 * F.kl_div((own / 2).log_softmax(1), (said[name] / 2).softmax(1), reduction="batchmean")
    term = {"type": "kd", "weight": 0.7, "temperature": 2.0}
    for losses in ([{**term, "of": "a"}, {**term, "of": "b"}], [term]):
        recipe = Distillation(task_weight=0.5, losses=tuple(LossTerm.model_validate(each) for each in losses))
        found = TrainingLoss(recipe, STUDENT, SPECIALISTS, seed=0)(Outputs(logits), theirs, rows)
        assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_losses_that_read_labels_leave_out_samples_without(targets: np.ndarray, logits: torch.Tensor) -> None:
    said = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.from_numpy(targets)
    recipe = Distillation(task_weight=0, losses=(LossTerm(type="dkd", weight=1.0, of="a"),))
    loss = TrainingLoss(recipe, STUDENT, {"a": SPECIALISTS["a"]}, seed=0)
    known = labels[:, 0] >= 0
    found, alone = (
        loss(Outputs(ours), OutputsByTeacher({"a": Outputs(theirs)}), Rows(ours, of, None, of >= 0, HEADS))
        for ours, theirs, of in ((logits, said, labels), (logits[known], said[known], labels[known]))
    )
    assert float(found) == pytest.approx(float(alone), rel=1e-5)


def test_a_specialist_of_other_classes_is_refused() -> None:
    recipe = Distillation(losses=(LossTerm(type="kd", weight=1.0, of="a"),))
    with pytest.raises(ConfigError, match="4 outputs and the teacher 5"):
        TrainingLoss(recipe, STUDENT, {"a": OutputShapes(5, heads=(Head("digit", 5),))}, seed=0)
