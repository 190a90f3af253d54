"""The `module` teacher: a user's function and weights, adapted to the data or refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from kdnas.errors import ConfigError, TeacherError
from kdnas.teachers import TEACHERS, Teacher, TeacherContext

_CODE = """
import torch
from torch import nn

def small(channels=3, classes=10, size=None):
    torch.manual_seed(0)
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)] if size is None else [
        nn.Flatten(), nn.Linear(8 * size * size, classes)]
    return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Dropout(0.5), *tail)

def broken(): raise RuntimeError("no such thing")
def not_a_module(): return 3
def gives_maps(): return nn.Conv2d(3, 10, 3)
def gives_nan():
    network = small()
    network[5].weight.data.fill_(float("nan"))
    return network
"""


@pytest.fixture
def build(tmp_path: Path, open_context: Callable[..., TeacherContext]) -> Callable[..., Teacher]:
    """Return a function that builds the teacher `factory` of a file in the data root."""
    (tmp_path / "nets.py").write_text(_CODE)

    def run(factory: str = "small", context: TeacherContext | None = None, **options) -> Teacher:
        return TEACHERS.build("module", context or open_context(), factory=f"nets.py:{factory}", **options)

    return run


def _cifar(data_root: Path) -> tuple[torch.nn.Module, dict]:
    """Return the real teacher built by its own file, without kdnas."""
    folder = data_root / "teachers" / "cifar10"
    specification = importlib.util.spec_from_file_location("cifar_teacher_alone", folder / "teacher.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    network = module.build_teacher()
    network.load_state_dict(load_file(folder / "teacher.safetensors"))
    options = {
        "factory": "teachers/cifar10/teacher.py:build_teacher",
        "weights": "teachers/cifar10/teacher.safetensors",
        "mean": [125.3, 123.0, 113.9],
        "std": [63.0, 62.1, 66.7],
    }
    return network.eval(), options


def test_the_real_cifar_teacher_gives_its_own_logits(data_root: Path, open_context, raw_images) -> None:
    network, options = _cifar(data_root)
    context = open_context(data_root=data_root)
    teacher = TEACHERS.build("module", context, **options)
    mean, std = torch.tensor(options["mean"]), torch.tensor(options["std"])
    images = raw_images(context)
    with torch.no_grad():
        expected = network((images - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(teacher.module(images), expected, rtol=1e-5, atol=1e-5)
    parts = dict(teacher.module.named_modules())
    assert [name.rpartition(".")[2] for name in teacher.stages] != []
    assert [parts[name] for name in teacher.stages][-1].__class__.__name__ in ("Sequential", "BasicBlock")
    assert teacher.classifier is not None
    assert parts[teacher.classifier].out_features == 10
    assert teacher.name == "teacher"
    assert not any(part.training for part in teacher.module.modules())
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    assert any("trained on that split" in note for note in teacher.notes)


def test_stages_and_classifier_can_be_named(data_root: Path, open_context) -> None:
    _, options = _cifar(data_root)
    context = open_context(data_root=data_root)
    teacher = TEACHERS.build("module", context, **options, stages=("stage1", "stage3"), classifier="fc")
    shapes = {}
    parts = dict(teacher.module.named_modules())
    for name in teacher.stages:
        parts[name].register_forward_hook(lambda part, x, out, name=name: shapes.update({name: tuple(out.shape)}))
    teacher.module(torch.zeros(1, 3, 32, 32))
    assert list(shapes.values()) == [(1, 32, 32, 32), (1, 128, 8, 8)]
    assert parts[teacher.classifier].in_features == 128


def test_the_fingerprint_follows_what_decides_the_outputs(build) -> None:
    base = build(mean=(1, 2, 3), std=(4, 5, 6)).fingerprint
    assert build(mean=(1, 2, 3), std=(4, 5, 6)).fingerprint == base
    assert build(mean=(1, 2, 4), std=(4, 5, 6)).fingerprint != base
    assert build(mean=(1, 2, 3), std=(4, 5, 6), input_size=16).fingerprint != base
    changed = build("small", mean=(1, 2, 3), std=(4, 5, 6), arguments={"size": 32})
    assert changed.fingerprint != base


def test_unstated_normalisation_is_the_datas_own_with_a_note(build, raw_images, open_context) -> None:
    context = open_context()
    stated = build(context=context, mean=context.data.channel_mean, std=context.data.channel_std)
    teacher = build(context=context)
    torch.testing.assert_close(teacher.module(raw_images(context)), stated.module(raw_images(context)))
    assert any("no normalisation was stated" in note for note in teacher.notes)
    assert any("no weights file" in note for note in teacher.notes)
    assert not any("no normalisation" in note for note in stated.notes)


def test_images_are_resized_for_a_teacher_of_another_size(build, raw_images, open_context) -> None:
    context = open_context(size=32)
    options = {"mean": (0, 0, 0), "std": (255, 255, 255), "arguments": {"size": 16}}
    teacher = build(context=context, input_size=16, **options)
    images = raw_images(context)
    small = F.interpolate(images, (16, 16), mode="bilinear", antialias=True) / 255
    network = teacher.module.normalised.network
    torch.testing.assert_close(teacher.module(images), network(small), rtol=1e-5, atol=1e-5)
    assert any("32x32 are resized to 16x16" in note for note in teacher.notes)
    with pytest.raises(TeacherError, match=r"fails on the data's images of 3x32x32.*input_size"):
        build(context=context, **options)


@pytest.mark.parametrize("options", [{}, {"mean": (10, 20, 30), "std": (40, 50, 60)}])
def test_grey_images_are_repeated_for_a_colour_teacher(build, raw_images, open_context, options: dict) -> None:
    context = open_context(channels=1)
    teacher = build(context=context, **options)
    images = raw_images(context)
    mean, std = options.get("mean", (120.0,) * 3), options.get("std", (60.0,) * 3)
    colour = (images.expand(-1, 3, -1, -1) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(teacher.module(images), teacher.module.normalised.network(colour))
    assert any("repeated to three channels" in note for note in teacher.notes)


def test_a_grey_teacher_of_grey_data_is_left_alone(build, open_context) -> None:
    teacher = build(context=open_context(channels=1), arguments={"channels": 1})
    assert not any("repeated" in note for note in teacher.notes)


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        ("small", {"arguments": {"classes": 7}}, "has 7 classes, the data random has 10"),
        ("small", {"arguments": {"channels": 4}}, "fails on the data's images of 3x32x32"),
        ("small", {"arguments": {"colour": 4}}, "unexpected keyword"),
        ("small", {"mean": (1, 2)}, "give both or neither"),
        ("small", {"mean": (1, 2), "std": (1, 2)}, "2 and 2 numbers for images of 3 channels"),
        ("small", {"mean": (1, 2, 3), "std": (1, 0, 2)}, "not positive"),
        ("small", {"stages": ("layer9",)}, "has no layer9"),
        ("small", {"stages": ("4",)}, r"4 gives \(2, 8\)"),
        ("small", {"classifier": "0"}, "0 is a Conv2d"),
        ("small", {"weights": "absent.safetensors"}, "there is no file"),
        ("broken", {}, "fails: RuntimeError: no such thing"),
        ("not_a_module", {}, "returned an object of type int"),
        ("gives_maps", {}, r"gives \(8, 10, 30, 30\) for 8 images"),
        ("gives_nan", {}, "NaN or infinite logits"),
        ("absent", {}, "has no 'absent'"),
    ],
)
def test_what_does_not_fit_is_refused(build, factory: str, options: dict, message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        build(factory, **options)


def test_unknown_options_are_refused(build) -> None:
    with pytest.raises(ConfigError, match=r"weight.*did you mean 'weights'"):
        build(weight="x")


def test_statistics_of_images_in_0_to_1_are_refused_with_those_of_bytes(build) -> None:
    with pytest.raises(ConfigError, match=r"std: must be on the 0-255 scale.*\[127\.5, 58\.395, 51\]"):
        build(mean=(0.485, 0.456, 0.406), std=(0.5, 0.229, 0.2))
    assert not TEACHERS.problems("timm", {"model": "resnet18", "mean": [0, 0, 0], "std": [1, 1, 1]})
    assert all(TEACHERS.problems(name, {"std": [0.5]}) for name in ("timm", "torchvision", "huggingface"))


def test_it_is_said_that_an_enlarged_image_has_lost_what_the_data_s_size_left_out(build, open_context) -> None:
    [note] = [note for note in build(input_size=48, context=open_context()).notes if "resized" in note]
    assert "try a data.size" in note
    [note] = [note for note in build(input_size=16, context=open_context()).notes if "resized" in note]
    assert "data.size" not in note
