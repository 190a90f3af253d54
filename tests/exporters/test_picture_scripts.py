"""Exported scripts label picture files as the student does on kdnas's own data set of them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from kdnas.core.card import StudentCard
from kdnas.core.preprocessing import Preprocessing
from kdnas.core.task import image_classification
from kdnas.datasets import DATASETS
from kdnas.exporters import EXPORTERS, TrainedStudent
from kdnas.nn.normalise import Normalised
from kdnas.students import family_for

NAMES = ("cat", "dog", 'owl; or "bird"')
BACKGROUND = "#203040"
CHOICES = {"stem_width": 8, "stage1.depth": 1, "stage1.width": 8, "stage1.bottleneck": "plain", "stage1.skip": "none"}


def pictures(folder: Path) -> None:
    """Write an image folder of all that differs: sizes, formats, orientation, transparency, 16 bits, greyscale."""
    draws = np.random.default_rng(0)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 8
    for split, count in (("train", 1), ("test", 3)):
        for name in ("a", "b", "c"):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                coarse = draws.integers(0, 256, size=(5, 7, 3), dtype=np.uint8)
                scene = Image.fromarray(coarse).resize((61 + 9 * index, 47), Image.Resampling.BICUBIC)
                path = folder / split / name / str(index)
                if name == "a":
                    scene.save(path.with_suffix(".jpg"), exif=turned, quality=95)
                elif name == "b":
                    scene.putalpha(scene.convert("L"))
                    scene.save(path.with_suffix(".png"))
                elif index == 0:
                    deep = np.asarray(scene.convert("L")).astype(np.uint16) * 257
                    Image.fromarray(deep).save(path.with_suffix(".png"))
                else:
                    scene.convert("L").save(path.with_suffix(".bmp"))


@pytest.fixture(scope="module")
def made(request, tmp_path_factory) -> tuple[TrainedStudent, Path, torch.Tensor]:
    """A student, the folder of its exports, and kdnas's probabilities for the test pictures in the order of paths."""
    root = tmp_path_factory.mktemp("data")
    pictures(root / "photos")
    options = {"size": (20, 16), "grayscale": request.param == 1, "background": BACKGROUND}
    data = DATASETS.build("image_folder", root, root / "cache", path="photos", **options)
    task = image_classification(data.task.image_shape, len(NAMES))
    family = family_for("resnet", task)
    arch = family.canonical(CHOICES)
    torch.manual_seed(0)
    module = family.build(arch).eval()
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.running_mean, -0.5, 0.5)
    student = TrainedStudent(
        arch=arch,
        spec=task,
        module=Normalised(module, data.channel_mean, data.channel_std).eval(),
        network=module,
        source=family.source(arch),
        preprocessing=Preprocessing(
            size=(20, 16),
            colour="greyscale" if request.param == 1 else "RGB",
            channel_mean=data.channel_mean,
            channel_std=data.channel_std,
            class_names=NAMES,
            background=BACKGROUND,
        ),
        recipe={},
        card=StudentCard(),
    )
    out = tmp_path_factory.mktemp("export")
    for name in ("student_py", "safetensors", "student_json", "model_card", "train_yaml"):
        EXPORTERS.build(name, student, out)
    with torch.no_grad():
        logits = student.module(torch.from_numpy(np.array(data.test.inputs["pixels"])).float())
    return student, out, logits.softmax(1)


def labelled(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)


def probabilities(printed: str) -> torch.Tensor:
    rows = [json.loads(line)["classes"] for line in printed.splitlines()]
    return torch.tensor([[{c["class"]: c["probability"] for c in row}[name] for name in NAMES] for row in rows])


greyscale = pytest.mark.parametrize("made", [1], indirect=True)
colour = pytest.mark.parametrize("made", [3], indirect=True)


@pytest.mark.parametrize("made", [1, 3], indirect=True)
def test_predict_py_labels_picture_files_as_kdnas_does(made, tmp_path):
    _, out, expected = made
    pictures(tmp_path / "photos")
    ran = labelled(out / "predict.py", str(tmp_path / "photos" / "test"), "--json")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""  # nor a warning of PyTorch's about arrays that cannot be written
    assert torch.allclose(probabilities(ran.stdout), expected, atol=1e-5)
    assert float((expected.max(0).values - expected.min(0).values).max()) > 1e-3  # the pictures do differ


@greyscale
def test_predict_py_does_so_with_onnx(made, tmp_path):
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
        pytest.skip("no ONNX")
    student, _, expected = made
    pictures(tmp_path / "photos")
    assert EXPORTERS.build("onnx", student, tmp_path).files == ("student.onnx", "preprocessing.json", "predict.py")
    ran = labelled(tmp_path / "predict.py", str(tmp_path / "photos" / "test"), "--json")
    assert ran.returncode == 0, ran.stderr
    assert torch.allclose(probabilities(ran.stdout), expected, atol=1e-4)
    shown = labelled(tmp_path / "predict.py", "--help")
    assert "Labels pictures with one of 3 classes" in shown.stdout


@colour
def test_it_says_what_it_does_and_what_it_cannot_read(made, tmp_path):
    _, out, _ = made
    shown = labelled(out / "predict.py", "--help").stdout
    assert "bilinear" in shown
    assert "20 x 16" in shown
    Image.new("RGB", (9, 9), "red").save(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_text("no picture")
    Image.new("1", (14_000, 14_000)).save(tmp_path / "huge.png")
    given = [str(tmp_path / name) for name in ("bad.jpg", "huge.png", "good.png")]
    ran = labelled(out / "predict.py", *given, "--top", "1")
    assert ran.returncode == 1
    assert "bad.jpg" in ran.stderr
    assert "huge.png: Image size (196000000 pixels)" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stdout.startswith(str(tmp_path / "good.png"))
    assert ran.stdout.count("%") == 1


@pytest.mark.parametrize("made", [1, 3], indirect=True)
def test_every_export_carries_the_preprocessing_as_data(made):
    import safetensors

    student, out, _ = made
    plain = student.preprocessing.as_dict()
    assert plain["size"] == [20, 16]
    assert (plain["resize"], plain["aspect"], plain["background"]) == ("bilinear", "stretched", BACKGROUND)
    assert plain["colour"] == ("greyscale" if student.spec.image_shape[0] == 1 else "RGB")
    assert plain["class_names"] == list(NAMES)
    assert json.loads((out / "preprocessing.json").read_text()) == plain
    assert json.loads((out / "student.json").read_text())["input"]["preprocessing"] == plain
    with safetensors.safe_open(out / "student.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["preprocessing"]) == plain
    assert "bilinear" in (out / "MODEL_CARD.md").read_text()


@colour
def test_where_the_images_came_as_arrays_the_exports_say_so(made, tmp_path):
    arrays = dataclasses.replace(made[0].preprocessing, from_pictures=False)
    for name in ("student_py", "model_card"):
        EXPORTERS.build(name, dataclasses.replace(made[0], preprocessing=arrays), tmp_path)
    for file in ("predict.py", "MODEL_CARD.md"):
        assert "came as arrays" in (tmp_path / file).read_text()
