from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from torch import nn
from trained_run import TASK, small_arch, small_network

from kdnas.core.card import CostRecord
from kdnas.core.preprocessing import Preprocessing
from kdnas.errors import ExportError
from kdnas.exporters import EXPORTERS, TrainedStudent, lacking_formats
from kdnas.nn.normalise import Normalised
from kdnas.plan.exporting import available_formats
from kdnas.students import family_for
from kdnas.testing import ExporterConformance, suites
from kdnas.testing.exporters import CARD, RECIPE

MEAN, STD = (77.5,), (96.25,)
globals().update(suites(ExporterConformance))


def make_student(network: nn.Module | None = None, **changes: object) -> TrainedStudent:
    arch, network = small_arch(), small_network(0) if network is None else network
    student = TrainedStudent(
        arch=arch,
        spec=TASK,
        module=Normalised(network, MEAN, STD).eval(),
        network=network,
        source=family_for("resnet", TASK).source(arch),
        preprocessing=Preprocessing((8, 8), "greyscale", MEAN, STD, tuple(f"digit {label}" for label in range(10))),
        recipe=RECIPE,
        card=CARD,
    )
    return dataclasses.replace(student, **changes)


@pytest.fixture(scope="module")
def student() -> TrainedStudent:
    return make_student()


@pytest.fixture(scope="module")
def exported(student: TrainedStudent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every format that it has, each of which returned exactly the files it wrote."""
    folder = tmp_path_factory.mktemp("exported")
    installed, _ = available_formats()
    lacking = lacking_formats(installed, student.cut, student.network)
    assert set(lacking) == {"huggingface", "timm"}
    for name in sorted(set(installed) - set(lacking)):
        before = {path.name for path in folder.iterdir()}
        files = EXPORTERS.build(name, student, folder).files
        assert {path.name for path in folder.iterdir()} == before | set(files)
        assert files
    return folder


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(11).integers(0, 256, size=(5, *TASK.image_shape), dtype=np.uint8)


@pytest.fixture(scope="module")
def logits(student: TrainedStudent, images: np.ndarray) -> torch.Tensor:
    normal = (images.astype(np.float32) - np.float32(MEAN[0])) / np.float32(STD[0])
    with torch.no_grad():
        return student.network(torch.from_numpy(normal))


def test_safetensors_holds_every_tensor_and_says_what_it_is(exported: Path, student: TrainedStudent) -> None:
    path = exported / "student.safetensors"
    tensors = safetensors.torch.load_file(path)
    own = student.network.state_dict()
    assert tensors.keys() == own.keys()
    assert all(torch.equal(tensors[name], own[name]) for name in own)
    with safetensors.safe_open(path, framework="pt") as file:
        notes = file.metadata()
    assert notes["arch_id"] == student.arch.arch_id
    assert json.loads(notes["class_names"]) == list(student.preprocessing.class_names)
    assert json.loads(notes["channel_std"]) == list(STD)


def test_student_json_names_its_weights_by_hash(exported: Path, student: TrainedStudent) -> None:
    import hashlib

    record = json.loads((exported / "student.json").read_text())
    assert record["weights"]["sha256"] == hashlib.sha256((exported / "student.safetensors").read_bytes()).hexdigest()
    assert record["arch"] == json.loads(student.arch.canonical_json)
    assert record["input"]["shape"] == [1, 8, 8]
    assert record["classes"][9] == "digit 9"
    assert record["measured"]["quantities"]["latency_ms"]["spread"] == 0.02


def test_student_py_runs_alone(exported: Path, student: TrainedStudent, tmp_path: Path) -> None:
    command = [sys.executable, "-I", str(exported / "student.py")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    params = sum(parameter.numel() for parameter in student.network.parameters())
    assert "output: [4, 10] float32 logits" in ran.stdout
    assert f"parameters: {params}\n" in ran.stdout
    assert "digit 0, digit 1" in ran.stdout
    asked = subprocess.run([*command, "photo.png"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert asked.returncode == 1
    assert "python predict.py photo.jpg labels a picture" in asked.stderr


def test_student_py_gives_the_same_outputs(exported: Path, images: np.ndarray, logits: torch.Tensor) -> None:
    import runpy

    module = runpy.run_path(str(exported / "student.py"), run_name="exported")
    network = module["load_student"](exported / "student.safetensors")
    with torch.no_grad():
        assert torch.equal(module["logits_of"](network, torch.from_numpy(images)), logits)


def test_student_py_refuses_damaged_weights(exported: Path, tmp_path: Path) -> None:
    import runpy

    module = runpy.run_path(str(exported / "student.py"), run_name="exported")
    whole = (exported / "student.safetensors").read_bytes()
    for length in (0, 4, 100, len(whole) - 1):
        cut = tmp_path / f"cut{length}"
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut"):
            module["read_safetensors"](cut)


def test_onnx_takes_pixels_at_any_batch(exported: Path, images: np.ndarray, logits: torch.Tensor) -> None:
    import onnx
    import onnxruntime

    model = onnx.load(exported / "student.onnx")
    (pixels,) = model.graph.input
    assert pixels.name == "pixels"
    assert pixels.type.tensor_type.shape.dim[0].dim_param
    assert {prop.key for prop in model.metadata_props} >= {"arch_id", "class_names"}
    session = onnxruntime.InferenceSession(exported / "student.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"pixels": images.astype(np.float32)})
    np.testing.assert_allclose(output, logits.numpy(), rtol=0, atol=1e-4 * max(1.0, float(logits.abs().max())))


def test_train_yaml_is_commented_and_reads_back(exported: Path) -> None:
    text = (exported / "train.yaml").read_text()
    assert text.startswith("# ")
    assert yaml.safe_load(text) == RECIPE


def test_model_card_shows_the_measured_numbers(exported: Path, student: TrainedStudent) -> None:
    text = (exported / "MODEL_CARD.md").read_text()
    assert "0.9123 | ± 0.0100 | 3" in text
    assert "FLOPs = 2 x MACs | 2,469,134" in text
    assert "| latency_ms | 0.5 | ms | 0.02 | median of 50; cpu, 1 thread |" in text
    assert "20 % were held out." in text
    assert "big: validation accuracy 0.9700, MACs 9,000,000, latency 7.25 ms" in text
    params = sum(parameter.numel() for parameter in student.network.parameters())
    assert f"| params | {params:,} |" in text


def test_model_card_refuses_a_record_of_another_network(student: TrainedStudent, tmp_path: Path) -> None:
    card = dataclasses.replace(CARD, quantities={"params": CostRecord(17, "parameters")})
    with pytest.raises(ExportError, match="the record has 17 parameters"):
        EXPORTERS.build("model_card", dataclasses.replace(student, card=card), tmp_path)


def test_channels_last_student_exports_the_same_file(student: TrainedStudent, exported: Path, tmp_path: Path) -> None:
    module = small_network(0).to(memory_format=torch.channels_last)
    EXPORTERS.build("safetensors", make_student(module), tmp_path)
    ours, theirs = (safetensors.torch.load_file(f / "student.safetensors") for f in (tmp_path, exported))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class Scaled(nn.Module):
    """A student that computes something its source and weights do not say."""

    def __init__(self, network: nn.Module, when_exported: bool = False):
        super().__init__()
        self.__dict__["inner"] = network
        self.when_exported = when_exported
        self.classifier, self.stages, self.stem = network.classifier, network.stages, getattr(network, "stem", None)

    def state_dict(self, *arguments: object, **options: object) -> dict[str, torch.Tensor]:
        return self.__dict__["inner"].state_dict(*arguments, **options)

    def load_state_dict(self, *arguments: object, **options: object) -> object:
        return self.__dict__["inner"].load_state_dict(*arguments, **options)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.__dict__["inner"](images)
        return logits * (1.0 if self.when_exported and not torch.compiler.is_exporting() else 1.01)


def test_student_py_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"student\.py: run alone it does not give the student's outputs"):
        EXPORTERS.build("student_py", make_student(Scaled(small_network(0))), tmp_path)


def test_onnx_that_deviates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="at batch size 1 its outputs differ from PyTorch's by"):
        EXPORTERS.build("onnx", make_student(Scaled(small_network(0), when_exported=True)), tmp_path)


def test_weights_stand_alone_where_the_network_cannot_be_written_as_code(student, tmp_path) -> None:
    unusable = dataclasses.replace(student, source="def build_student(): raise ValueError('not here')")
    for name in ("safetensors", "student_json"):
        made = EXPORTERS.build(name, unusable, tmp_path)
        assert "not here" in made.notes[0]
        assert set(made.files) == {path.name for path in tmp_path.iterdir()} - {"student.json"} | set(made.files)
    assert {path.name for path in tmp_path.iterdir()} == {"student.safetensors", "student.json", "preprocessing.json"}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def build_student(:", "is not Python"),
        ("import torch\n", r"defines no build_student\(\)"),
        (
            "import kdnas\ndef build_student(): return kdnas\n",
            "builds the network needs kdnas, and exports run without",
        ),
    ],
)
def test_unusable_source_is_refused(student: TrainedStudent, tmp_path: Path, source: str, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        EXPORTERS.build("student_py", dataclasses.replace(student, source=source), tmp_path)


def test_student_with_infinite_outputs_is_refused(tmp_path: Path) -> None:
    network = small_network(0)
    with torch.no_grad():
        network.classifier.bias[0] = float("nan")
    with pytest.raises(ExportError, match="not all finite"):
        EXPORTERS.build("safetensors", make_student(network), tmp_path)


def test_class_names_that_do_not_fit_are_refused(student: TrainedStudent, tmp_path: Path) -> None:
    few = dataclasses.replace(student.preprocessing, class_names=("a", "b"))
    changed = dataclasses.replace(student, preprocessing=few)
    with pytest.raises(ExportError, match="2 class names for a student of 10 classes"):
        EXPORTERS.build("student_json", changed, tmp_path)


def test_onnx_without_its_packages_names_the_extra(
    student: TrainedStudent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    from kdnas.errors import ConfigError

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else find(name))
    with pytest.raises(ConfigError, match=re.escape("needs onnxruntime: pip install 'kdnas[onnx]'")):
        EXPORTERS.build("onnx", student, tmp_path)
