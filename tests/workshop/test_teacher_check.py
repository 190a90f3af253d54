"""A teacher is checked before it teaches: real digits, and networks with the habits of the wild."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from workshops import split_of

from kdnas.controller.preparation import prepare_study
from kdnas.core.data import ImageData
from kdnas.errors import RunFolderError, TeacherError
from kdnas.study.loading import load_study
from kdnas.tasks.image_classification import Augmentation
from kdnas.teachers import Teacher, TeacherContext
from kdnas.teachers._adapting import Expected, fit_teacher
from kdnas.teachers._class_names import naming_of
from kdnas.training.recipe import Training
from kdnas.training.teacher_outputs import BatchPlan, views_key
from kdnas.workshop.evaluators import EvaluatorContext, open_evaluator
from kdnas.workshop.opening import cache_dir
from kdnas.workshop.teacher_check import report_teacher

CPU = torch.device("cpu")


class Linear(nn.Module):
    """The least-squares classifier of the digits, sharpened to logits; `answer` makes its answer of them."""

    def __init__(self, weights: np.ndarray, answer=None, parts: dict[str, nn.Module] | None = None):
        super().__init__()
        self.fc = nn.Linear(64, 10)
        self.fc.weight.data = torch.from_numpy(12 * weights[:-1].T.copy()).float()
        self.fc.bias.data = torch.from_numpy(12 * weights[-1]).float()
        self.answer = answer
        for name, part in (parts or {}).items():
            setattr(self, name, part)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.fc(images.flatten(1))
        return logits if self.answer is None else self.answer(self, logits)


@pytest.fixture(scope="module")
def weights(digits: ImageData) -> np.ndarray:
    train, _ = split_of(digits)
    pixels = digits.train.inputs["pixels"][train].reshape(len(train), -1) / 255.0
    inputs = np.c_[pixels, np.ones(len(pixels))]
    return np.linalg.lstsq(inputs, np.eye(10)[digits.train.targets[train]], rcond=None)[0]


@pytest.fixture
def report(digits: ImageData, weights: np.ndarray):
    """Return a function that fits the digits' linear teacher and reports on it."""
    _, validation = split_of(digits)

    def make(answer=None, *, parts=None, data: ImageData = digits, order=None, names=None, images=None, bfloat16=False):
        network = Linear(weights if order is None else weights[:, order], answer, parts)
        context = TeacherContext(data, Path("nowhere"), CPU, None)
        expected = Expected((0.0,), (255.0,))
        teacher: Teacher = fit_teacher("net", network, context, expected, facts={}, naming=naming_of(names))
        training = Training(precision="bfloat16" if bfloat16 else "float32")
        asked = validation if images is None else validation[:images]
        return report_teacher(teacher, data, asked, training, device=CPU)

    return make


def test_a_sound_teacher_passes_without_a_word(report) -> None:
    found = report()
    assert found.score > 0.9
    assert found.outputs == "logits"
    assert found.notes == ()
    assert report(lambda net, z: z.log_softmax(1)).notes == ()


# -- outputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "outputs", "words"),
    [
        (
            lambda net, z: z.softmax(1),
            "probabilities",
            "outputs: probabilities that sum to 1, whose logarithm is taken",
        ),
        (lambda net, z: 100 * z.softmax(1), "probabilities", "outputs: probabilities that sum to 100"),
        (lambda net, z: F.one_hot(z.argmax(1), 10), "probabilities", "outputs: one-hot"),
        (lambda net, z: z.sigmoid(), "logits", "outputs: all within 0..1"),
        (lambda net, z: z / 1000, "logits", "almost equal for all classes"),
        (lambda net, z: 1000 * z, "logits", "even at temperature 4"),
    ],
)
def test_what_is_no_plain_logit_is_noted(report, answer, outputs: str, words: str) -> None:
    found = report(answer)
    assert found.outputs == outputs
    assert words in "; ".join(found.notes)
    assert found.score == pytest.approx(report().score, abs=0.02)  # scored in bfloat16 where that is native


def test_logits_that_are_not_finite_are_counted(report) -> None:
    with pytest.raises(TeacherError, match=r"gives NaN or infinite logits for \d+ of 287 validation images"):
        report(lambda net, z: torch.where(z.amax(1, keepdim=True) > 13, float("inf"), z))


@pytest.mark.parametrize("distances", [lambda net, z: -z, lambda net, z: -z.log_softmax(1)])
def test_distances_and_losses_are_no_logits(report, distances) -> None:
    with pytest.raises(TeacherError, match=r"but 0\.9\d+ by its smallest output: it gives distances or losses"):
        report(distances)


# -- classes -----------------------------------------------------------------------------------------------------------


ROTATED = [0, 1, 4, 2, 3, 5, 6, 7, 8, 9]


def test_rotated_classes_are_refused_named_and_mended(report, digits: ImageData) -> None:
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    data = replace(digits, class_names=tuple(names))
    with pytest.raises(TeacherError) as caught:
        report(data=data, order=ROTATED)
    message = str(caught.value)
    assert "its output 'two' means 'four'" in message
    stated = '["zero", "one", "four", "two", "three", "five", "six", "seven", "eight", "nine"]'
    assert f"teacher.class_names: {stated}" in message
    mended = report(data=data, order=ROTATED, names=[names[index] for index in ROTATED])
    assert mended.score == report().score
    with pytest.raises(TeacherError, match="read in another order"):
        report(data=data, order=ROTATED, names=names)  # stated, and wrong


def test_a_few_images_only_hint_at_an_order(report) -> None:
    found = report(order=ROTATED, images=20)
    assert any("its output '2' means '4'" in note and "too few images" in note for note in found.notes)


# -- conduct -----------------------------------------------------------------------------------------------------------


class Restless(nn.Dropout):
    """A dropout that never rests."""

    def train(self, mode: bool = True):
        return super().train(True)


@pytest.mark.parametrize(
    ("answer", "parts", "words"),
    [
        (lambda net, z: F.dropout(z, 0.2), {}, "a second time differ by .*functional dropout without training"),
        (lambda net, z: net.drop(z), {"drop": Restless(0.2)}, r"train even in eval mode: drop \(Restless\)"),
        (lambda net, z: net.norm(z), {"norm": nn.BatchNorm1d(10, track_running_stats=False)}, r"norm \(BatchNorm1d\)"),
        (lambda net, z: z - z.mean(0), {}, "reads other images of the batch"),
        (lambda net, z: (z - z.mean(0)) - torch.where(torch.arange(10) > 8, 1e30, 0.0), {}, "reads other images"),
        (lambda net, z: z + 1e-2 * torch.arange(len(z))[:, None], {}, "in another order differ"),
        (lambda net, z: z.squeeze() + 0 * z.squeeze().sum(1, keepdim=True), {}, "fails on one image alone: .*squeeze"),
        (lambda net, z: z[: len(z) // 8 * 8], {}, "for half|one image alone"),
    ],
)
def test_answers_that_more_than_the_image_decides_are_refused(report, answer, parts, words: str) -> None:
    with pytest.raises(TeacherError, match=words):
        report(answer, parts=parts)


def test_a_part_that_trains_without_effect_is_named(report) -> None:
    found = report(parts={"idle": Restless(0.5)})
    assert any("idle" in note for note in found.notes)


def test_what_bfloat16_costs_a_teacher_is_told(report) -> None:
    def coarse(net: nn.Module, logits: Tensor) -> Tensor:
        return logits + 1500 - 1500 if logits.dtype == torch.bfloat16 else logits  # a step is 8 there

    assert report(coarse).notes == ()
    found = report(coarse, bfloat16=True)
    assert any("set training.precision: float32" in note for note in found.notes)
    assert report(bfloat16=True).notes == ()


def test_a_teacher_that_fails_in_bfloat16_is_refused_in_words(report) -> None:
    def strict(net: nn.Module, logits: Tensor) -> Tensor:
        return (
            logits @ torch.eye(10, dtype=torch.float32) if torch.is_autocast_enabled("cpu") is False else logits.numpy()
        )

    with pytest.raises(TeacherError, match="fails on the validation images in bfloat16: .*precision: float32"):
        report(strict, bfloat16=True)


def test_a_teacher_of_one_answer_is_named_so(report) -> None:
    with pytest.raises(TeacherError, match="it answers '9' for every image"):
        report(lambda net, z: 0 * z + torch.linspace(-1, 1, 10))


# -- the same teacher everywhere ---------------------------------------------------------------------------------------


STUDY = """\
name: own
data: digits
teacher: {type: module, factory: "net.py:build", weights: w.safetensors, mean: [0], std: [255]}
space: digits_resnet
costs: {}
executor: {type: local, workers: 1}
"""
BODY = """\
import pathlib
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)
        self.scale = float(pathlib.Path(__file__).with_name("scale").read_text())

    def forward(self, images):
        return self.scale * self.fc(images.flatten(1))

def build():
    return Net()
"""


@pytest.fixture
def study(tmp_path: Path, weights: np.ndarray) -> Path:
    """Write a study of the linear teacher whose answers hang on a file beside its factory."""
    network = Linear(weights)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    for name, text in {"net.py": BODY, "scale": "1", "study.yaml": STUDY}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def _prepared(study: Path):
    (study / "run").mkdir(exist_ok=True)
    options = {"data_root": study, "cache": cache_dir(), "device": CPU, "observe": lambda event: None}
    return prepare_study(load_study(study / "study.yaml"), study / "run", **options)


def test_a_resume_notices_a_teacher_that_answers_otherwise(study: Path) -> None:
    first = _prepared(study)
    assert len(first.run.lock.teacher_answers) == 32
    (study / "scale").write_text("1.00001")  # as another machine rounds
    again = _prepared(study).run.lock
    assert replace(again, space=first.run.lock.space) == first.run.lock
    (study / "scale").write_text("0.9")
    with pytest.raises(RunFolderError, match="answers otherwise than before, though its files are the same"):
        _prepared(study)


def test_a_worker_stops_at_another_teacher_than_its_controller_s(study: Path) -> None:
    plan = _prepared(study).workplan
    assert plan().fingerprints["teacher"]
    (study / "scale").write_text("0.9")
    with pytest.raises(TeacherError, match="answers otherwise than before"):
        plan()
    (study / "scale").write_text("1")
    state = {name: value + 1e-3 for name, value in Linear(np.zeros((65, 10))).state_dict().items()}
    save_file(state, study / "w.safetensors")
    with pytest.raises(TeacherError, match="is another network"):
        plan()


def test_kept_answers_are_those_of_the_teacher_as_it_is(study: Path) -> None:
    keys = set()
    for scale in ("1", "0.9", "1"):
        (study / "scale").write_text(scale)
        opened = open_evaluator(EvaluatorContext(*_loaded(study), study, study, cache_dir(), "cpu")).workshop
        plan = BatchPlan(opened.batches(opened.train_indices), 64, Augmentation(), 0)
        shapes = opened.teacher_shapes(*opened.teachers)
        keys.add(views_key(opened.teacher, shapes, plan, needs=frozenset({"logits"}), bfloat16=False))
    assert len({key.digest for key in keys}) == 2


def _loaded(study: Path):
    loaded = load_study(study / "study.yaml")
    return loaded.config, loaded.space
