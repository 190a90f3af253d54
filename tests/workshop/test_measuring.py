import json
import statistics
from pathlib import Path

import pytest
import torch
from torch import nn

from kdnas.core.card import StudentCard
from kdnas.core.measurement import Measurement
from kdnas.core.preprocessing import Preprocessing
from kdnas.core.task import image_classification
from kdnas.errors import ConfigError, RunError
from kdnas.exporters import EXPORTERS, TrainedStudent
from kdnas.nn.normalise import Normalised
from kdnas.students import family_for, stated_arch
from kdnas.targets import EnergyCounter, Missing
from kdnas.workshop import measuring
from kdnas.workshop.measuring import measure, subjects, targets

TASK = image_classification((1, 8, 8), 10)


def arch(width: int):
    return stated_arch(
        "resnet",
        {
            "stem_width": 4,
            "stage1.depth": 1,
            "stage1.width": width,
            "stage1.bottleneck": "plain",
            "stage1.skip": "identity",
        },
    )


def exported(folder: Path, width: int = 8, formats: tuple[str, ...] = ("student_json",)) -> Path:
    """The export of an untrained student."""
    folder.mkdir()
    family = family_for("resnet", TASK)
    read = Preprocessing((8, 8), "greyscale", (8.0,), (4.0,), tuple("0123456789"))
    network = family.build(arch(width)).eval()
    module = Normalised(network, (8.0,), (4.0,)).eval()
    student = TrainedStudent(arch(width), TASK, module, network, family.source(arch(width)), read, {}, StudentCard())
    for name in formats:
        EXPORTERS.build(name, student, folder)
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    return exported(tmp_path_factory.mktemp("exports") / "both", formats=("student_json", "onnx"))


class FakeTarget:
    """A target whose clock the test controls: a pass takes 1 ms a 10,000 parameters, the reference network's too."""

    where, batch_size, takes_onnx = "a machine", 3, False

    def __init__(self, slowness=lambda passes: 1.0, energy=None):
        self.now, self.passes, self.slowness = 0.0, 0, slowness
        self.energy = energy or Missing("no counter")
        self.shapes = []

    def ready(self):
        return torch.inference_mode()

    def run(self, network, inputs):
        self.shapes.append(tuple(inputs[0].shape))
        seconds = sum(p.numel() for p in network.parameters()) * 1e-7

        def run():
            self.passes += 1
            self.now += seconds * self.slowness(self.passes)

        return run

    def clock(self):
        return self.now

    def peak_memory_bytes(self, network, inputs):
        return Measurement(float(sum(p.numel() for p in network.parameters())), 0.0, 1, "a machine; by counting")

    def energy_counter(self):
        return self.energy


@pytest.mark.parametrize("file", ["", "student.json", "student.onnx"])
def test_an_export_is_read_from_its_folder_or_a_file_of_it(both, file):
    (subject,) = subjects(both / file if file else both)
    assert subject.arch == arch(8)
    assert subject.task == TASK
    assert (subject.onnx is not None) == (file != "student.json")
    cpu, onnxruntime = targets("cpu", {})[0], targets("onnxruntime", {})[0]
    if file == "student.onnx":
        with pytest.raises(ConfigError, match="is an ONNX file, and the target .* runs PyTorch networks"):
            subject.network(cpu)
    else:
        assert isinstance(subject.network(cpu), nn.Module)
    assert isinstance(subject.network(onnxruntime), Path) == (file != "student.json")


def test_students_are_measured_side_by_side_and_drift_cancels(tmp_path):
    both = [*subjects(exported(tmp_path / "a", 8)), *subjects(exported(tmp_path / "b", 32))]
    target = FakeTarget(lambda passes: 1.0 + 0.1 * (passes // 60 % 2))
    report = measure(both, "fake", target, repeats=40)
    assert set(target.shapes) == {(3, 1, 8, 8), (1, 16, 32, 32)}
    for student, subject in zip(report.students, both, strict=True):
        price = family_for("resnet", TASK).price(subject.arch)
        assert (student.macs, student.params) == (price.macs, price.params)
        assert student.latency_ms.value == pytest.approx(price.params * 1e-4, rel=0.12)
        assert student.latency_ms.repeats == 40
        assert student.peak_memory_bytes.value == price.params
    ratio = report.students[1].latency_ms.value / report.students[0].latency_ms.value
    assert ratio == pytest.approx(report.students[1].params / report.students[0].params, rel=1e-6)


def test_a_machine_that_drifts_too_far_is_refused(tmp_path):
    students = subjects(exported(tmp_path / "a"))
    with pytest.raises(RunError, match=r"too unsteady .* changed by \d+% meanwhile \(at most 50%\)") as refused:
        measure(students, "fake", FakeTarget(lambda passes: 1.004**passes), repeats=60)
    assert refused.value.exit_code == 1
    report = measure(students, "fake", FakeTarget(lambda passes: 1.004**passes), repeats=60, max_drift=2.0)
    assert report.drift > 0.5


def test_energy_is_read_from_the_counter_or_left_empty(tmp_path, monkeypatch):
    students = subjects(exported(tmp_path / "a"))
    plain = measure(students, "fake", FakeTarget(), repeats=5).as_dict()
    assert plain["students"][0]["energy_mj"] is None
    assert plain["students"][0]["energy_mj_missing"] == "no counter"
    monkeypatch.setattr(measuring, "_ENERGY_WINDOW_S", 0.01)
    target = FakeTarget()
    # 5 mJ a pass, whatever the number of passes in a window.
    target.energy = EnergyCounter("the chip", lambda: target.passes, lambda start, end: 5.0 * (end - start))
    plain = measure(students, "fake", target, repeats=5).as_dict()
    assert plain["students"][0]["energy_mj"] == {
        "value": 5.0,
        "spread": 0.0,
        "repeats": 3,
        "context": "a machine; the chip",
    }
    assert "energy_mj_missing" not in json.loads(json.dumps(plain))["students"][0]


def test_targets_are_built_in_their_variants_and_options_are_checked():
    assert [target.where for target in targets("cpu", {"threads": 2, "batch_size": 4})] == [
        "cpu, 2 threads, batch 4, float32"
    ]
    with pytest.raises(ConfigError, match="no target is called 'cpus'; did you mean 'cpu'"):
        targets("cpus", {})
    with pytest.raises(ConfigError, match="--threads: target cuda has no such option"):
        targets("cuda", {"threads": 2})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing", None, "there is no such folder or file"),
        ("empty.txt", "", "is no run folder .* and no exported student"),
        ("student.json", "{", "is not a student that kdnas exported"),
        ("student.json", "[]", "is not a student that kdnas exported"),
        ("student.json", '{"format": "other"}', "its format is not kdnas-student"),
        ("student.json", '{"format": "kdnas-student", "arch": {}}', "it has no 'input'"),
        ("student.onnx", "no protobuf", "is not a student that kdnas exported"),
    ],
)
def test_what_is_no_student_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        subjects(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": {"family": "nets", "choices": {}}}, "no student family is called 'nets'"),
        ({"arch": {"family": "resnet", "choices": {"stem_width": 0}}}, "stem_width: cannot be 0"),
        ({"classes": []}, "its input shape or its classes are missing"),
        ({"input": {"shape": [1, 8]}}, "its input shape or its classes are missing"),
    ],
)
def test_a_student_that_cannot_be_built_is_refused(tmp_path, change, message):
    file = exported(tmp_path / "a") / "student.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ConfigError, match=message):
        subjects(file)


def test_a_pick_is_of_a_run_only(both):
    with pytest.raises(ConfigError, match="--pick: .* is not a run folder"):
        subjects(both, "knee")


def test_the_order_of_students_does_not_matter_to_a_real_target(tmp_path):
    (small,), (large,) = subjects(exported(tmp_path / "a", 4)), subjects(exported(tmp_path / "b", 256))
    target = targets("cpu", {"batch_size": 2})[0]
    report = measure([large, small, large], "cpu", target, repeats=15, max_drift=50.0)
    first, middle, last = (student.latency_ms.value for student in report.students)
    assert middle < statistics.fmean([first, last]) / 2
    assert report.students[0].peak_memory_bytes.value > report.students[1].peak_memory_bytes.value
    assert report.reference_ms > 0
