"""What every export format keeps, on a small residual network."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from kdnas.core.arch import Scalar
from kdnas.core.card import CostRecord, DataCard, MeanScore, StudentCard, TeacherCard
from kdnas.core.preprocessing import Preprocessing
from kdnas.core.task import image_classification
from kdnas.exporters import EXPORTERS, TrainedStudent, Written, lacking_formats
from kdnas.nn.normalise import Normalised
from kdnas.students import family_for
from kdnas.testing._member import MemberConformance

TASK = image_classification((1, 8, 8), 10)
_MEAN, _STD = (77.5,), (96.25,)
_CHOICES: dict[str, Scalar] = {
    "stem_width": 4,
    **{"stage1.depth": 1, "stage1.width": 4, "stage1.bottleneck": "plain", "stage1.skip": "identity"},
    **{"stage2.depth": 1, "stage2.width": 8, "stage2.bottleneck": 0.5, "stage2.skip": "projection"},
}
RECIPE = {"format_version": 1, "seed": 3, "training": {"learning_rate": 1e-05, "optimizer": "sgd"}, "name": "yes"}
CARD = StudentCard(
    study="tiny",
    trial=7,
    made_by="kdnas 0",
    validation=MeanScore(0.91234, 0.01, 3),
    test=MeanScore(0.9, None, 3),
    quantities={
        "macs": CostRecord(1234567, "MACs"),
        "latency_ms": CostRecord(0.5, "ms", 0.02, 50, "cpu, 1 thread"),
    },
    teacher=TeacherCard("big", 0.97, None, {"macs": 9e6, "latency_ms": 7.25}, ("adapted",)),
    data=DataCard("digits", "abc", "20 % were held out."),
)


def trained_student() -> TrainedStudent:
    """Return a student of grey images [1, 8, 8] of 10 classes, with random weights and norm statistics."""
    family = family_for("resnet", TASK)
    arch = family.canonical(_CHOICES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = family.build(arch).train()
        for _ in range(3):
            network(torch.randn(32, *TASK.image_shape) * 2 + 0.5)
    network.eval()
    return TrainedStudent(
        arch=arch,
        spec=TASK,
        module=Normalised(network, _MEAN, _STD).eval(),
        network=network,
        source=family.source(arch),
        preprocessing=Preprocessing((8, 8), "greyscale", _MEAN, _STD, tuple(f"digit {label}" for label in range(10))),
        recipe=RECIPE,
        card=CARD,
    )


class ExporterConformance(MemberConformance):
    """The suite of export formats."""

    registry = EXPORTERS

    def _student(self) -> TrainedStudent:
        """Return a student that has the format; skips the test where there is none, or the format is not installed."""
        module, student = sys.modules[EXPORTERS.get(self._member).__module__], trained_student()
        for package in getattr(module, "REQUIRES", ()):
            pytest.importorskip(package)
        for why in lacking_formats([self._member], student.cut, student.network).values():
            pytest.skip(why)
        return student

    def test_it_writes_what_it_says_and_leaves_the_student_as_it_was(self, tmp_path: Path) -> None:
        student = self._student()
        before = {key: value.clone() for key, value in student.module.state_dict().items()}
        written = self.build(student, tmp_path)
        assert isinstance(written, Written)
        assert written.files
        assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(written.files)
        assert all((tmp_path / name).stat().st_size for name in written.files)
        assert all(isinstance(note, str) for note in written.notes)
        assert not any(module.training for module in student.module.modules())
        assert all(torch.equal(before[key], value) for key, value in student.module.state_dict().items())

    def test_another_formats_files_may_lie_beside_its_own(self, tmp_path: Path) -> None:
        EXPORTERS.build("safetensors", trained_student(), tmp_path)
        written = self.build(self._student(), tmp_path)
        assert all((tmp_path / name).is_file() for name in written.files)
