"""Students cut from other libraries' networks: exported, and opened in processes that have no kdnas."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cut_students import CLASSES, IMAGES, MEAN, STD, TEXTS, image_student, run_without_kdnas, student

from kdnas.errors import ExportError
from kdnas.exporters import EXPORTERS
from kdnas.exporters.huggingface import described
from kdnas.exporters.huggingface import why_not as why_no_folder
from kdnas.exporters.timm import why_not as why_no_arguments
from kdnas.nn.anatomy import read_anatomy
from kdnas.nn.cutting import outputs
from kdnas.nn.normalise import Normalised
from kdnas.nn.origin import Entrance, Origin
from kdnas.picture import eight_bits, fitted, opaque, upright

NAMES = [*IMAGES, *TEXTS]
slow = pytest.mark.slow


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_with_code_that_gives_the_students_outputs_bit_for_bit(name, tmp_path):
    made = EXPORTERS.build("safetensors", student(name), tmp_path)  # it compares; a note would say that it failed
    assert made.notes == ()
    assert "student.py" in made.files
    assert ("predict.py" in made.files) == (name in IMAGES)


@slow
@pytest.mark.parametrize("name", NAMES)
def test_student_py_runs_with_the_teachers_own_library_alone(name, tmp_path):
    cut = student(name)
    EXPORTERS.build("student_py", cut, tmp_path)  # it is run alone and compared, predict.py too
    printed = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "student.py")], capture_output=True, text=True, check=True
    ).stdout
    assert f"parameters: {sum(p.numel() for p in cut.network.parameters())}\n" in printed


@pytest.mark.parametrize("name", ["timm_vit", *(pytest.param(n, marks=slow) for n in NAMES if n != "timm_vit")])
def test_onnx_takes_any_batch_and_any_length(name, tmp_path):
    import onnx

    EXPORTERS.build("onnx", student(name), tmp_path)  # three batches, three lengths, in ONNX Runtime
    for given in onnx.load(tmp_path / "student.onnx").graph.input:
        dims = given.type.tensor_type.shape.dim
        assert dims[0].dim_param
        assert dims[1].dim_param == ("length" if name in TEXTS else "")


@pytest.mark.parametrize("name", ["timm_vit", "bert"])
def test_openvino_takes_any_batch_and_any_length(name, tmp_path):
    pytest.importorskip("openvino")
    files = EXPORTERS.build("openvino", student(name), tmp_path).files  # three batches, three lengths, in its runtime
    assert {"student.xml", "student.bin"} <= set(files)


TAKEN = [name for name in NAMES if name != "gpt2"]


@pytest.mark.parametrize("name", ["bert", *(pytest.param(name, marks=slow) for name in TAKEN if name != "bert")])
def test_executorch_takes_any_batch_and_any_length(name, tmp_path):
    pytest.importorskip("executorch")
    files = EXPORTERS.build("executorch", student(name), tmp_path).files  # three batches, three lengths, in its runtime
    assert "student.pte" in files


@slow
def test_what_executorch_cannot_read_is_said(tmp_path):
    """Its programs keep strides that GPT-2's own layers cannot view."""
    pytest.importorskip("executorch")
    with pytest.raises(ExportError, match="no program of ExecuTorch"):
        EXPORTERS.build("executorch", student("gpt2"), tmp_path)


@slow
@pytest.mark.parametrize("name", ["hf_vit", *TEXTS])
def test_a_uniform_student_opens_as_a_folder_of_its_library(name, tmp_path):
    cut = student(name)
    files = EXPORTERS.build("huggingface", cut, tmp_path).files
    assert {"huggingface/config.json", "huggingface/model.safetensors", "huggingface/README.md"} <= set(files)
    auto = {"hf_vit": "ImageClassification", "bert": "SequenceClassification", "distilbert": "SequenceClassification"}
    kind = f"AutoModelFor{auto.get(name, 'CausalLM')}"
    code = (
        "import json, torch, transformers\n"
        f"network = transformers.{kind}.from_pretrained(sys.argv[1])\n"
        "print(json.dumps([sum(p.numel() for p in network.parameters()), list(network.config.id2label.values())]))"
    )
    count, labels = run_without_kdnas(code, tmp_path / "huggingface")
    assert count == sum(parameter.numel() for parameter in cut.network.parameters())
    assert kind.endswith("CausalLM") or labels == list(CLASSES)


@slow
@pytest.mark.parametrize("name", ["timm_vit", "convnext_atto", "resnet18"])
def test_a_student_that_timms_arguments_tell_opens_as_its_folder(name, tmp_path):
    cut = student(name, "depth") if name == "resnet18" else student(name)
    EXPORTERS.build("timm", cut, tmp_path)
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["label_names"] == list(CLASSES)
    assert config["pretrained_cfg"]["mean"] == pytest.approx([value / 255 for value in MEAN])


def test_what_a_librarys_own_form_cannot_tell_is_said():
    cut = student("bert", "heads")
    assert "configuration has one size for all layers: bert.encoder" in why_no_folder(cut.cut, cut.network)
    cut = student("mobilenetv3")
    assert "express no size" in why_no_arguments(cut.cut, cut.network)
    assert "a Hugging Face teacher" in why_no_folder(cut.cut, cut.network)
    assert "a timm teacher" in why_no_arguments(None, cut.network)
    assert why_no_folder(*(lambda s: (s.cut, s.network))(student("gpt2"))) == ""


@pytest.mark.parametrize(("layers", "told"), [([0, 1], True), ([0, 2], False), ([1, 3], False), ([0, 1, 2], True)])
@pytest.mark.parametrize("window", [2, 4])  # of 4, one window is the whole map of the second stage: none is shifted
def test_a_swin_whose_windows_its_configuration_would_shift_otherwise_is_no_folder(layers, told, window):
    import transformers

    sizes = {"embed_dim": 16, "depths": [1, 4], "num_heads": [2, 4], "patch_size": 4, "window_size": window}
    torch.manual_seed(0)
    network = transformers.SwinForImageClassification(transformers.SwinConfig(image_size=32, num_labels=5, **sizes))
    with torch.no_grad():
        for parameter in network.eval().parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    example = torch.randn(2, 3, 32, 32)
    anatomy = read_anatomy(network, example)
    cut = anatomy.cut(network, anatomy.prefix(anatomy.sizes) | {anatomy.depths[-1].name: layers}).eval()
    answers = outputs(cut, example)
    opened, why = described(cut, None)
    stock = transformers.SwinForImageClassification(opened.config).eval()
    stock.load_state_dict(cut.state_dict())
    same = torch.allclose(outputs(stock, example), answers, atol=1e-6)
    assert same == (told or window == 4)
    assert (why == "") == same
    assert same or "shifts its windows by" in why


def test_an_own_kind_that_cannot_be_had_is_refused_and_writes_nothing(tmp_path):
    with pytest.raises(ExportError, match="timm: the arguments of a MobileNetV3 express no size"):
        EXPORTERS.build("timm", student("mobilenetv3"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def reordered(order):
    """A student whose teacher answers in another order than the data's, and takes larger images than the data's."""
    cut = student("timm_vit")
    origin = dataclasses.replace(cut.cut.origin, entrance=Entrance(MEAN, STD, size=(32, 32), classes=order, outputs=5))

    class Entered(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Normalised(cut.network, MEAN, STD, size=(32, 32))

        def forward(self, images):
            return self.inner(images)[:, list(order)]

    preprocessing = dataclasses.replace(cut.preprocessing, size=(24, 24), network_size=(32, 32))
    spec = dataclasses.replace(cut.spec, inputs=(dataclasses.replace(cut.spec.inputs[0], shape=(3, 24, 24)),))
    return dataclasses.replace(
        cut,
        spec=spec,
        module=Entered().eval(),
        preprocessing=preprocessing,
        cut=dataclasses.replace(cut.cut, origin=origin),
    )


def test_classes_in_the_teachers_order_and_its_size_travel(tmp_path):
    cut = reordered((2, 0, 1, 4, 3))
    EXPORTERS.build("timm", cut, tmp_path)  # predict.py is run on pictures and compared by name
    names = json.loads((tmp_path / "timm" / "preprocessing.json").read_text())["class_names"]
    assert names == [
        "metal" if own == 1 else name for own, name in enumerate(["glass", "metal", "cardboard", "trash", "paper"])
    ]
    assert EXPORTERS.build("safetensors", cut, tmp_path).notes == ()
    partial = reordered((2, 0, 1))
    assert "other classes" in why_no_arguments(partial.cut, partial.network)


def test_a_users_own_module_travels_with_the_files_that_it_imports(tmp_path):
    (tmp_path / "layers.py").write_text(
        "from torch import nn\n\ndef block(c):\n    return nn.Conv2d(c, c, 3, padding=1)\n"
    )
    (tmp_path / "net.py").write_text(
        "from layers import block\nfrom torch import nn\n\n"
        "def build(width):\n    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), block(width), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))\n"
    )
    from kdnas.user_code import load_user_function

    function = load_user_function("net.py:build", tmp_path)
    origin = Origin("module", function.name, {"width": 8}, Entrance(MEAN, STD), files=function.sources)
    assert function.name == "net:build"
    assert set(function.sources) == {"net.py", "layers.py"}
    cut = image_student(function(width=8), origin, side=16)
    files = EXPORTERS.build("student_py", cut, tmp_path / "out").files if (tmp_path / "out").mkdir() is None else ()
    assert {"teacher_code/net.py", "teacher_code/layers.py", "student.py"} <= set(files)


def photos(folder: Path, data: Path, count: int) -> list[Path]:
    """Extract photos of the shared data, of every kind."""
    with tarfile.open(data / "trashnet96.tar.xz") as archive:
        found = []
        for member in archive:
            if member.name.endswith(".jpg") and "/test/" in f"/{member.name}":
                archive.extract(member, folder, filter="data")
                found.append(folder / member.name)
            if len(found) == count:
                return found
    return found


@slow
def test_predict_py_labels_real_photos_as_kdnas_does(tmp_path):
    from PIL import Image

    data = Path("/work/shared/data")
    if not (data / "trashnet96.tar.xz").is_file():
        pytest.skip("no photos here")
    cut = student("timm_vit")
    for name in ("student_py", "onnx"):
        EXPORTERS.build(name, cut, tmp_path)
    EXPORTERS.build("timm", cut, tmp_path)
    files = photos(tmp_path / "photos", data, 8)
    seen = []
    for file in files:
        with Image.open(file) as picture:
            seen.append(fitted(opaque(eight_bits(upright(picture), picture.format), "white"), (32, 32), 3))
    with torch.no_grad():
        expected = cut.module(torch.from_numpy(np.stack(seen)).float()).softmax(1)
    for script, network in (
        (tmp_path / "predict.py", "student.py"),
        (tmp_path / "predict.py", "student.onnx"),
        (tmp_path / "timm" / "predict.py", "model.safetensors"),
    ):
        code = "import runpy\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
        command = [sys.executable, "-I", "-c", f"import sys\nsys.modules['kdnas'] = None\n{code}", str(script)]
        ran = subprocess.run(
            [*command, *map(str, files), "--json", "--top", "5", "--network", network],
            capture_output=True,
            text=True,
            check=True,
        )
        rows = [{c["class"]: c["probability"] for c in json.loads(line)["classes"]} for line in ran.stdout.splitlines()]
        found = torch.tensor([[row[name] for name in CLASSES] for row in rows])
        assert torch.allclose(found, expected, atol=1e-4)
        assert torch.equal(found.argmax(1), expected.argmax(1))
    assert float((expected.max(0).values - expected.min(0).values).max()) > 1e-3  # the photos do differ
