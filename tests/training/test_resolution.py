"""Students trained and scored at a share of the resolution; resized images against the triangle filter by hand."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from trainings import CPU, KD, batches, net, recipe, teacher

from kdnas.core.fidelity import Fidelity
from kdnas.tasks.image_classification import Augmentation
from kdnas.training.loop import Course, Pupil, Trained, distil
from kdnas.training.loop import train as train_all
from kdnas.training.recipe import LossTerm, Training

if TYPE_CHECKING:
    from torch import nn

    from kdnas.core.data import ImageData


def halved(images: np.ndarray) -> np.ndarray:
    """Return [B, 1, 8, 8] as [B, 1, 4, 4]: weights 1, 3, 3, 1 over the pixels around the centre, where they exist."""
    weights = np.zeros((4, 8))
    for row in range(4):
        for column, weight in zip(range(2 * row - 1, 2 * row + 3), (1, 3, 3, 1), strict=True):
            if 0 <= column < 8:
                weights[row, column] = weight
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("ih,jw,bchw->bcij", weights, weights, images.astype(np.float64))


def inputs_of(module: nn.Module) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach().clone()))
    return seen


def trained(data: ImageData, network: nn.Module, *, images: int = 512, **training: Any) -> Trained:
    given = recipe(KD, **training)
    train, validation = batches(data, 0, images), batches(data, 1000, 1400)
    return distil(network, teacher(data), train, validation, given, data=data, seed=1, device=CPU)


def test_the_student_sees_small_images_and_the_teacher_whole_ones(data) -> None:
    given, train = recipe(KD, epochs=1, batch_size=300, resolution_fraction=0.5), batches(data, 0, 300)
    student, guide = net(8, 16), teacher(data)
    theirs, ours = inputs_of(guide.module), inputs_of(student)
    distil(student, guide, train, None, given, data=data, seed=1, device=CPU)
    assert {tuple(images.shape[1:]) for images in ours} == {(1, 4, 4)}
    assert {tuple(images.shape[1:]) for images in theirs} == {(1, 8, 8)}
    assert len(theirs[-1]) == len(ours[-1]) == 300
    expected = (halved(theirs[-1].numpy()) - data.channel_mean[0]) / data.channel_std[0]
    np.testing.assert_allclose(ours[-1].numpy(), expected, atol=1e-5)


def test_the_score_is_that_of_the_resized_validation_images(data) -> None:
    result = trained(data, net(8, 16), images=1000, epochs=4, resolution_fraction=0.5)
    assert result.fidelity == Fidelity(4, resolution_fraction=0.5)
    images = (halved(np.array(data.train.inputs["pixels"][1000:1400])) - data.channel_mean[0]) / data.channel_std[0]
    with torch.no_grad():
        guesses = result.network(torch.from_numpy(images).float()).argmax(dim=1).numpy()
    assert result.score == np.mean(guesses == data.train.targets[1000:1400])
    assert result.score > 0.5  # chance is 0.1


@pytest.mark.parametrize("loss", ["dkd", "cosine", "hint", "attention", "rkd", "similarity"])
def test_every_loss_compares_a_small_students_maps_with_whole_ones(data, loss: str) -> None:
    given = recipe(LossTerm(type=loss), epochs=1, batch_size=200, resolution_fraction=0.7)  # 6 pixels beside 8
    train = batches(data, 0, 400)
    result = distil(net(8, 16), teacher(data), train, None, given, data=data, seed=1, device=CPU)
    assert np.isfinite(result.history[0].loss)


def test_packed_students_may_differ_in_resolution_and_learn_what_they_would_alone(data) -> None:
    views = {"augmentation": Augmentation(crop_padding=1)}
    recipes = [recipe(KD, resolution_fraction=fraction, **views) for fraction in (0.5, 1.0)]
    train, validation = batches(data, 0, 512), batches(data, 1000, 1400)
    students = [net(8, 16), net(8, 16)]
    course = Course(data, train, validation, teacher(data), 3, CPU)
    packed_students = zip(copy.deepcopy(students), recipes, strict=True)
    together = train_all(course, [Pupil(student, given, 1) for student, given in packed_students])
    options: dict[str, Any] = {"data": data, "seed": 1, "view_seed": 3, "device": CPU}
    for student, given, packed in zip(students, recipes, together, strict=True):
        alone = distil(student, teacher(data), train, validation, given, **options)
        assert isinstance(packed, Trained)
        assert packed.fidelity == alone.fidelity == given.training.fidelity
        assert packed.score == alone.score
        assert [record.loss for record in packed.history] == [record.loss for record in alone.history]
    losses = [one.history[0].loss for one in together if isinstance(one, Trained)]
    assert losses[0] != losses[1]


def test_the_full_resolution_is_not_written_so_that_old_records_keep_their_hashes() -> None:
    whole, half = Training(epochs=3), Training(epochs=3, resolution_fraction=0.5)
    assert "resolution_fraction" not in whole.model_dump(mode="json")
    assert Training.model_validate(whole.model_dump(mode="json")) == whole
    assert half.model_dump(mode="json")["resolution_fraction"] == 0.5
    assert Training.model_validate(half.model_dump(mode="json")) == half
