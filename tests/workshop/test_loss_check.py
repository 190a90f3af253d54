"""Losses are tried when a study opens: what a teacher or a student cannot serve is named before anything is trained."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from kdnas.core.data import ImageData
from kdnas.core.task import image_classification
from kdnas.errors import ConfigError
from kdnas.losses import LOSSES
from kdnas.students import family_for
from kdnas.teachers import Teacher
from kdnas.training.recipe import Distillation, LossTerm, Recipe, Training
from kdnas.workshop.loss_check import check_losses

CPU = torch.device("cpu")


class Student(nn.Module):
    """Two stages and a classifier, as every student family builds them."""

    def __init__(self, width: int = 4, stages: int = 2, classifier: type[nn.Module] = nn.Linear):
        super().__init__()
        sizes = [1, *(width * 2**index for index in range(stages))]
        layers = [nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(sizes)]
        self.stages = nn.ModuleList(layers)
        self.classifier = nn.Linear(sizes[-1], 10)

    def forward(self, images: Tensor) -> Tensor:
        for stage in self.stages:
            images = stage(images).relu()
        return self.classifier(images.mean((2, 3)))


class Tokens(nn.Module):
    """A network without maps, as a vision transformer is, whose head reads no vector."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 16), nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.embed(images.flatten(1, 2) / 255)).mean(1)


def _convnet(**options) -> Teacher:
    network = Student(8, **options).eval()
    return Teacher("conv", network, tuple(f"stages.{i}" for i in range(len(network.stages))), "classifier", "0")


TOKENS = Teacher("vit", Tokens().eval(), (), None, "1")
STUDENTS = {"the smallest student": Student(2), "the largest student": Student(4)}


def _check(data: ImageData, teacher: Teacher, *losses: str | LossTerm, students=STUDENTS) -> None:
    terms = tuple(LossTerm(type=loss, weight=1.0) if isinstance(loss, str) else loss for loss in losses)
    recipe = Recipe(training=Training(), distillation=Distillation(losses=terms))
    check_losses(recipe, teacher, students, data, device=CPU)


def test_losses_that_can_be_computed_pass(digits: ImageData) -> None:
    _check(digits, _convnet(), "kd", "dkd", "attention", "hint", "similarity", "cosine", "rkd")
    _check(digits, TOKENS, "kd", "dkd")
    _check(digits, TOKENS, "kd", LossTerm(type="attention", weight=0.0))


def test_what_a_teacher_cannot_serve_is_named_for_every_loss(digits: ImageData) -> None:
    with pytest.raises(ConfigError) as caught:
        _check(digits, TOKENS, "kd", "attention", "cosine")
    stages, embedding = caught.value.problems
    assert (stages.where, embedding.where) == ("distillation.losses.1", "distillation.losses.2")
    assert "or the tokens [B, N, C] of layers; the teacher vit has none that can be read" in stages.what
    assert "cosine compares the embedding" in embedding.what
    assert {"dkd", "kd"} <= {*stages.allowed.partition(": ")[2].partition(";")[0].split(", ")}
    assert "attention" not in stages.allowed


def test_a_student_that_lacks_something_is_named(digits: ImageData) -> None:
    students = {**STUDENTS, "the largest student": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}
    with pytest.raises(ConfigError, match="the largest student has none that can be read"):
        _check(digits, _convnet(), "attention", students=students)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (LossTerm(type="hint", weight=1.0, stage=7), r"hint cannot compare .*there is no matched stage 7"),
        (LossTerm(type="kd", weight=1.0), r"kd of the teacher conv and the smallest student is nan"),
    ],
)
def test_a_loss_that_fails_is_told_with_its_reason(digits: ImageData, term: LossTerm, message: str) -> None:
    teacher = _convnet()
    if term.type == "kd":
        teacher.module.classifier.bias.data.fill_(float("nan"))
    with pytest.raises(ConfigError, match=message):
        _check(digits, teacher, term)


def _vit(**choices) -> nn.Module:
    family = family_for("vit", image_classification((1, 8, 8), 10))
    sizes = {"width": 12, "depth": 3, "heads": 2, "head_size": 4, "patch_size": 2}
    return family.build(family.canonical({**sizes, **choices}))


@pytest.mark.parametrize(
    "loss", [name for name in LOSSES.names() if {"attention", "classifier"}.isdisjoint(LOSSES.get(name).needs)]
)
def test_a_vision_transformer_learns_from_the_features_of_a_convnet(loss: str, digits: ImageData) -> None:
    students = {"plain": _vit(), "distilled": _vit(distillation_token=True, patch_size=4)}
    _check(digits, _convnet(), loss, students=students)


@pytest.mark.parametrize("loss", ["attention_maps", "relations"])
def test_a_convnet_attends_to_nothing_that_could_be_learnt(loss: str, digits: ImageData) -> None:
    with pytest.raises(ConfigError, match="the teacher conv has none that can be read"):
        _check(digits, _convnet(), loss, students={"vit": _vit()})


def test_attention_is_compared_between_vision_transformers_of_equal_patches(digits: ImageData) -> None:
    names = tuple(f"stages.{index}" for index in range(3))
    teacher = Teacher("vit", _vit(width=16, heads=4).eval(), names, "classifier", "2")
    _check(digits, teacher, "attention_maps", "relations", "hidden", "patient", students={"vit": _vit(depth=2)})
    with pytest.raises(ConfigError, match="other numbers of tokens") as caught:
        _check(digits, teacher, "attention_maps", "relations", "hidden", students={"vit": _vit(patch_size=4)})
    assert len(caught.value.problems) == 2, "features are compared as pooled maps all the same"
